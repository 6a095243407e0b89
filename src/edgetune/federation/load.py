"""Open a fine-tune: a base model and a ledger give a ready transformers model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.errors import DigestError, ModelError
from edgetune.core.keys import key_id, pool_key
from edgetune.core.ledger import DirectionsSpec, Ledger, check_base, read_ledger
from edgetune.core.quantised import BlockGrid
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense
from edgetune.directions import KINDS, made_of
from edgetune.directions.space import BoundSpace
from edgetune.federation.residency import base_tensors, digest_of, grid_named
from edgetune.federation.worker import BASE_GRID, LAYER_SCALE
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.models.spoken import with_tokenizer
from edgetune.models.stored import stored_weights
from edgetune.tune import ProjectedTuned, StreamedTuned, plain_model, reopen


def load(
    base: str | Path,
    ledger: str | Path,
    *,
    key: bytes | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Return the tuned model that a ledger describes; `save_pretrained` of it writes a folder for transformers.

    Its tokenizer is `tokenizer` of the result, and saved with it.

    LoRA is merged into the weights. A trained prefix is no change of weights: the result is then peft's model. Nor is
    a bottleneck adapter: the model then has it as modules of its own, which transformers does not save.

    Args:
        base: model folder, GGUF file, Hub id, a name of `edgetune fetch`, or `embedded`.
        ledger: a `.ledger` file.
        key: 32 bytes, if the ledger's directions are under a secret key.
        dtype: type of the weights; in float32 the result is checked against the digest that the ledger records.
        device: where to put it.

    Raises:
        ModelError: if either file is damaged, or the key is missing.
        DigestError: if base, key or result do not match the ledger.
    Cost: two copies of the weights while loading.
    """
    backbone = load_backbone(base, dtype=dtype, device=device)
    model = materialise(backbone, read_ledger(Path(ledger)), key=key, where=Path(ledger))
    return with_tokenizer(model, backbone.tokenizer)


def materialise(
    backbone: Backbone, ledger: Ledger, *, key: bytes | None = None, where: Path | None = None
) -> PreTrainedModel:
    """Turn a backbone into the model of a ledger, in place, and check the result.

    Args:
        backbone: the base as it is stored; a ledger over a rounded base rounds it again.
        ledger: what was learnt.
        key: 32 bytes, if the directions are under a secret key.
        where: the ledger's file, for errors.

    Raises:
        ModelError: if the key is missing.
        DigestError: if base, key or result do not match the ledger.
    """
    refuse_other_base(backbone, ledger, where)
    grid = _grid(ledger)
    tuned: Tuned
    if ledger.directions is None:
        if not isinstance(ledger.update, Dense) or ledger.adapter is None:
            raise ModelError("the ledger holds neither directions nor an adapter", where=where)
        base = stored_weights(backbone.folder, backbone.model)
        tuned = reopen(backbone.model, None, _fitting(ledger.adapter, backbone, where), base)
    else:
        space = space_of(ledger.directions, key)
        if ledger.adapter is not None:
            tuned = reopen(backbone.model, space, _fitting(ledger.adapter, backbone, where))
        elif grid is not None:
            tuned = StreamedTuned(backbone.model, space, base_tensors(backbone, grid))
        else:
            base = stored_weights(backbone.folder, backbone.model)
            tuned = ProjectedTuned(backbone.model, space, base=base, scales=scales_of(ledger, backbone.model))
    tuned.reset(ledger.update)
    if ledger.weights_digest and backbone.dtype == torch.float32:
        found = tensor_digest(tuned.named_weights())
        if found != ledger.weights_digest:
            raise DigestError(
                f"the rebuilt weights have digest {found[:12]}, the ledger records {ledger.weights_digest[:12]}",
                hint="report this: every machine must rebuild the same bits",
            )
    return plain_model(tuned)


def refuse_other_base(backbone: Backbone, ledger: Ledger, where: Path | None) -> None:
    """Refuse a ledger that belongs to other weights or another configuration.

    Raises:
        DigestError: naming both digests.
        ModelError: if the ledger names an unknown grid.
    Cost: a digest of all weights if the ledger is over a rounded base.
    """
    check_base(ledger, digest_of(backbone, _grid(ledger)), where)


def _grid(ledger: Ledger) -> BlockGrid | None:
    return grid_named(ledger.extra.get(BASE_GRID))


def scales_of(ledger: Ledger, model: nn.Module) -> dict[str, float]:
    """Return the factors of layer-wise scaling: positive numbers for parameters that the model has.

    Raises:
        ModelError: if they are none.
    """
    try:
        found = json.loads(ledger.extra.get(LAYER_SCALE, "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError("the ledger's layer scales are no JSON") from error
    names = {name for name, _ in model.named_parameters()}
    if not isinstance(found, dict) or not found.keys() <= names:
        raise ModelError("the ledger's layer scales are not those of this model's parameters")
    for name, scale in found.items():
        real = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not (real and 1e-6 <= scale <= 1e6):
            raise ModelError(f"the ledger's layer scale is {scale!r}, not between 1e-6 and 1e6", where=name)
    return {name: float(scale) for name, scale in found.items()}


SETTINGS: dict[str, list[str]] = {
    "LORA": ["r", "lora_alpha"],
    "PREFIX_TUNING": ["num_virtual_tokens", "initial_scale"],
    "BOTTLENECK": ["reduction", "seed"],
    "BITFIT": [],
    "LINEAR": [],
    "WRITERS": ["tensors"],
    "FULL": [],
}
"""What an adapter's configuration must say, the setting of its size first."""


def _fitting(adapter: dict[str, Any], backbone: Backbone, where: Path | None) -> dict[str, Any]:
    """Refuse an adapter that lacks a setting, or is larger than any adapter of this model can be.

    Raises:
        ModelError: naming the setting.
    """
    width = max(max(weight.shape, default=1) for weight in backbone.model.parameters())
    settings = SETTINGS.get(str(adapter.get("peft_type")), SETTINGS["LORA"])
    for setting in settings:
        if adapter.get(setting) is None:
            raise ModelError(f"the ledger's adapter lacks the setting {setting!r}", where=where)
    size = settings[0] if settings else ""
    if isinstance(adapter.get(size), int) and adapter[size] > width:
        raise ModelError(
            f"the ledger's adapter has {size} = {adapter[size]}, the model's width is {width}", where=where
        )
    return adapter


def space_of(spec: DirectionsSpec, key: bytes | None) -> BoundSpace:
    """Return the directions that a ledger names, under their public key or the one given.

    Raises:
        ModelError: if the key is missing, or the directions are of an unknown kind.
        DigestError: if it is another key.
    """
    if key is None:
        if spec.seed is None:
            raise ModelError("this ledger's directions are under a secret key", hint="pass it as key=...")
        key = pool_key(spec.seed)
    if key_id(key) != spec.key_id:
        raise DigestError(f"the key has id {key_id(key)}, the ledger needs {spec.key_id}")
    made = KINDS.get(spec.kind)
    if made is None or (made.sized and not spec.size):
        hint = "update edgetune, or get the ledger again"
        raise ModelError(f"no directions of the kind {spec.kind!r} in a pool of {spec.size}", hint=hint)
    return BoundSpace(made_of(made, spec.size), key, pooled=spec.size > 0)
