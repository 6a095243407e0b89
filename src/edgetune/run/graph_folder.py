"""From a model to a folder whose model is one graph for a runtime: compress, write it, read it back, and run it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.sequential import compress_model
from edgetune.core.errors import ConfigError, ModelError, OutputError
from edgetune.core.events import Listener
from edgetune.core.quantised import QuantisedMatrix
from edgetune.core.widths import widths_of
from edgetune.models.saving import write_folder, write_words
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import Prepared
from edgetune.run.deploy import refuse_unmerged

POSITIONS = 256
"""Tokens on which predictions are compared, at most."""
CLOSE = 1e-3
"""Greatest difference of log-probabilities, nats: float32 sums in another order, over all layers."""
ALIKE = 1e-7
"""Greatest mean KL, nats: ten times what float32 leaves of it, a thousandth of what a wrong rotary base costs."""

Quantised = Mapping[str, QuantisedMatrix]


@dataclass(frozen=True, slots=True)
class Compared:
    """How far a runtime's predictions are from PyTorch's.

    Args:
        gap: greatest difference of log-probabilities, nats.
        divergence: mean KL(PyTorch || runtime), nats.
        rounding: mean KL(PyTorch || the same with activations rounded as the runtime does), nats; 0 where it does not.
    """

    gap: float
    divergence: float
    rounding: float = 0.0


@dataclass(frozen=True, slots=True)
class GraphChecked:
    """What was measured of a folder.

    Args:
        size_bytes: of its graph and weights.
        matrices: packed ones, each equal to the solver's bit for bit when read back.
        compared: its predictions in the runtime.
    """

    size_bytes: int
    matrices: int
    compared: Compared

    @property
    def gap(self) -> float:
        """Greatest difference of log-probabilities in the runtime, nats."""
        return self.compared.gap


def refuse_for_graph(kind: str, prepared: Prepared, folder: Path) -> None:
    """Find out before the work what no graph can be made of.

    Args:
        kind: of the format.
        prepared: model, data.
        folder: where it will go.

    Raises:
        ConfigError, ModelError: for a size, and for layers of several widths.
        OutputError: if the folder holds another model.
    """
    if prepared.recipe.compression.size is not None:
        what = f"a size is kept by grids of GGUF, not by {kind}"
        raise ConfigError(what, where="compression.size", hint="--grid")
    if widths_of(prepared.backbone.model.config) is not None:
        raise ModelError(f"layers of several widths are not written as {kind}", hint="write GGUF")
    odd = next(folder.glob("*.safetensors"), None)
    if odd is not None:
        what = f"{odd.name} of another model is in this folder"
        raise OutputError(what, where=folder, hint="choose another --out")


def compress_to_graph(
    model: PreTrainedModel,
    method: CompressionMethod,
    folder: Path,
    prepared: Prepared,
    listener: Listener,
    scratch: Path | None,
    *,
    name: str,
    write: Callable[[Quantised, Path], None],
    compare: Callable[[Quantised, Path, Sequence[Sequence[int]]], Compared],
) -> GraphChecked:
    """Compress a model in place and write the very codes the solver chose; nothing is there unless it was verified.

    Args:
        model: becomes the model that the folder holds.
        method: the compression method.
        folder: created if missing.
        prepared: calibration sample.
        listener: receives what it is calibrated on, and one event a matrix.
        scratch: a folder for solved blocks, so that a killed compression goes on.
        name: of the graph's file.
        write: writes it, and reads its codes back.
        compare: runs it on texts.

    Raises:
        ConfigError, DataError: as `calibration_of`.
        OutputError: if it cannot be written.
        Whatever `write` and `compare` raise.
    """
    refuse_unmerged(model)
    calibration = calibration_of(prepared) if method.reads else None
    if calibration is not None:
        listener(calibration.event)
    batches = calibration.batches if calibration else []
    quantised = compress_model(model, batches, method, listener, scratch=scratch)
    texts = [list(example.input_ids) for example in prepared.calibration_examples]
    checked: list[GraphChecked] = []

    def fill(partial: Path) -> None:
        write(quantised, partial / name)
        config: Any = copy.deepcopy(model.config)
        config.dtype = torch.float32
        config.architectures = [type(model).__name__]
        config.save_pretrained(partial)
        write_words(partial, prepared.backbone.tokenizer, prepared.backbone.folder)
        size = sum(one.stat().st_size for one in partial.glob(f"{name}*"))
        compared = compare(quantised, partial / name, texts)
        checked.append(GraphChecked(size, len(quantised), compared))

    write_folder(folder, fill)
    return checked[0]


def some_of(texts: Sequence[Sequence[int]], longest: int = POSITIONS) -> list[list[int]]:
    """Return the first `POSITIONS` tokens of some texts, of each no more than `longest`."""
    found, left = list[list[int]](), POSITIONS
    for text in texts:
        ids = list(text[: min(left, longest)])
        left -= len(ids)
        if ids:
            found.append(ids)
    return found


@torch.no_grad()
def predicted(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return log-probabilities behind every token of some texts, float64 [tokens, vocabulary]."""
    call, place = cast(Any, model), next(model.parameters()).device
    found = [call(torch.tensor([list(ids)], device=place)).logits[0] for ids in texts]
    return [logits.cpu().double().log_softmax(-1) for logits in found]


def differences(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], where: Path
) -> tuple[float, float]:
    """Compare log-probabilities of the same texts.

        gap = max |log p - log q|,   divergence = mean_t sum_v p (log p - log q),   p ours, q theirs

    Args:
        ours, theirs: float64 [tokens, vocabulary] each.
        where: the file, for errors.

    Raises:
        ModelError: if there is no token.
    """
    if not ours:
        raise ModelError("no token to compare log-probabilities on", where=where)
    gaps = [float((p - q).abs().max()) for p, q in zip(ours, theirs, strict=True)]
    each = [(p.exp() * (p - q)).sum(-1) for p, q in zip(ours, theirs, strict=True)]
    return max(gaps), float(torch.cat(each).mean())
