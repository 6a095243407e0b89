"""The base of a run that prunes before it tunes: a folder inside the run's, made once and found again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgetune.core.compression_events import Calibrated, Pruned
from edgetune.core.errors import DigestError, EdgetuneError
from edgetune.core.events import Event
from edgetune.core.files import write_text_atomic
from edgetune.core.progress import Progress, silent
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.identity import canonical
from edgetune.models.saving import save_model, stored_dtype
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import DTYPES, Prepared
from edgetune.run.names import LEDGER, PRUNED
from edgetune.run.pruning import Step, Weighing, prune_prepared, settled_as_stored

MARK = "made_of.json"
"""Lies in the folder once it is whole: what it was made of, and what was measured then."""


@dataclass(frozen=True, slots=True)
class PrunedBase:
    """A run on a pruned base.

    Args:
        prepared: the run, on the pruned base.
        dense: the base that was pruned.
        events: what happened.
    """

    prepared: Prepared
    dense: Backbone
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """What pruning took, whenever that was."""
        return sum(one.seconds for one in self.events if isinstance(one, Pruned))


def pruned_base(prepared: Prepared, out: Path, progress: Progress = silent) -> PrunedBase:
    """Prune the base of a run into its folder, or take the folder that an earlier start of the same run has left.

    Args:
        prepared: the run on its dense base.
        out: folder of the run.
        progress: told of the work.

    Returns:
        The run on the folder's model, loaded from it: ledger, devices and file name that base.

    Raises:
        DigestError: the folder holds the ledger of a run whose base was pruned otherwise.
        EdgetuneError: as `prune_prepared` and `save_model`.
    Cost: that of `prune_prepared`, once; the folder, in the type that the dense model is stored in.
    """
    folder, key = out / PRUNED, _key(prepared)
    left = _left(folder)
    if left is not None and left["key"] != key and (out / LEDGER).exists():
        raise DigestError(
            "this folder holds a run on a base that was pruned otherwise", where=folder,
            hint="delete the folder to start again, or choose another --out",
        )  # fmt: skip
    if left is not None and left["key"] == key:
        found = _opened(prepared, folder, left)
        if found is not None:
            return found
    return _made(prepared, folder, key, progress)


def pruned_event(prepared: Prepared, steps: list[Step], seconds: float, base_digest: str) -> Pruned:
    """Return the event of a pruning from what was measured after its steps, the dense model first."""
    section = prepared.recipe.pruning
    return Pruned(
        ratio=section.ratio,
        width=section.width,
        importance=section.importance,
        recover=section.recover,
        weights_before=steps[0].weights,
        weights=steps[-1].weights,
        kl={one.name: one.divergence for one in steps[1:]},
        loss={one.name: one.loss for one in steps},
        seconds=seconds,
        base_digest=base_digest,
    )


def _made(prepared: Prepared, folder: Path, key: str, progress: Progress) -> PrunedBase:
    start, told = time.perf_counter(), list[Event]()
    dense = prepared.backbone
    weighing = Weighing(prepared, dense.model, progress, answers=False)
    (folder / MARK).unlink(missing_ok=True)
    model = prune_prepared(prepared, dense.model, listener=told.append, progress=progress, weigh=weighing)
    settled_as_stored(model, stored_dtype(dense.folder))
    save_model(model, dense.tokenizer, folder, words=dense.folder)
    del model
    backbone = _loaded(prepared, folder)
    event = pruned_event(prepared, weighing.steps, time.perf_counter() - start, backbone.digest)
    said = {"key": key, "pruned": asdict(event), "calibrated": [asdict(one) for one in told]}
    write_text_atomic(folder / MARK, json.dumps(said, indent=2) + "\n")
    return PrunedBase(replace(prepared, backbone=backbone), dense, (*told, event))


def _opened(prepared: Prepared, folder: Path, left: Mapping[str, Any]) -> PrunedBase | None:
    """Return what an earlier start left; None if it is not what it says, so that it is made again."""
    try:
        event = Pruned(**left["pruned"])
        told = [Calibrated(**one) for one in left["calibrated"]]
        backbone = _loaded(prepared, folder)
    except (EdgetuneError, KeyError, TypeError):
        return None
    if backbone.digest != event.base_digest:
        return None
    return PrunedBase(replace(prepared, backbone=backbone), prepared.backbone, (*told, event))


def _loaded(prepared: Prepared, folder: Path) -> Backbone:
    """Load the folder as the run's base was loaded, with the same ends of answers."""
    recipe, device = prepared.recipe, prepared.backbone.model.device
    backbone = load_backbone(folder, dtype=DTYPES[recipe.model.dtype], device=device)
    if prepared.ends and backbone.model.generation_config is not None:
        backbone.model.generation_config.eos_token_id = list(prepared.ends)
    return backbone


def _left(folder: Path) -> dict[str, Any] | None:
    try:
        said = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("key"), str) else None


def _key(prepared: Prepared) -> str:
    """Name everything that decides the pruned base."""
    recipe, backbone = prepared.recipe, prepared.backbone
    said = {
        "base": [backbone.digest, backbone.prompt_digest, str(backbone.dtype)],
        "pruning": recipe.pruning.model_dump(),
        "text": [recipe.compression.calibration, recipe.compression.calibration_tokens],
        "records": [prepared.manifest.identity, recipe.seed, recipe.data.max_tokens, prepared.prompt.name],
    }
    digest = sha256(canonical(said).encode())
    for batch in calibration_of(prepared).batches:
        digest.update(batch.input_ids.numpy().tobytes() + batch.labels.numpy().tobytes())
    return digest.hexdigest()
