"""From a model to a folder for ONNX Runtime: compress, write the graph, read the codes back, and run it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import placement
from edgetune.compress.sequential import compress_model
from edgetune.core.errors import ConfigError, ModelError, OutputError, VerifyError
from edgetune.core.events import Listener
from edgetune.core.widths import widths_of
from edgetune.export.onnx_graph import refuse_for_onnx, write_onnx
from edgetune.export.onnx_runtime import OnnxDecoder
from edgetune.models.saving import write_folder, write_words
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import Prepared
from edgetune.run.deploy import refuse_unmerged

FILE = "model.onnx"
POSITIONS = 256
"""Tokens on which predictions are compared, at most."""
CLOSE = 1e-3
"""Greatest difference of log-probabilities, nats: float32 sums in another order, over all layers."""
ALIKE = 1e-7
"""Greatest mean KL, nats: ten times what float32 leaves of it, a thousandth of what a wrong rotary base costs."""


@dataclass(frozen=True, slots=True)
class OnnxChecked:
    """What was measured of a folder.

    Args:
        size_bytes: of its graph and weights.
        matrices: packed ones, each equal to the solver's bit for bit when read back.
        gap: greatest difference of log-probabilities in ONNX Runtime, nats.
        divergence: mean KL(PyTorch || ONNX Runtime), nats.
    """

    size_bytes: int
    matrices: int
    gap: float
    divergence: float


def plan_onnx(prepared: Prepared, method: CompressionMethod, folder: Path) -> None:
    """Find out before the work whatever the end of it would refuse.

    Args:
        prepared: model, data.
        method: how it is going to be compressed.
        folder: where it will go.

    Raises:
        ConfigError, ModelError, MissingExtraError: as `refuse_for_onnx`, and for a size or a method without a grid.
        OutputError: if the folder holds another model.
    """
    model = prepared.backbone.model
    if prepared.recipe.compression.size is not None:
        what = "a size is kept by grids of GGUF, not by onnx"
        raise ConfigError(what, where="compression.size", hint="--grid")
    if widths_of(model.config) is not None:
        raise ModelError("layers of several widths are not written as ONNX", hint="write GGUF")
    refuse_for_onnx(model, placement(model, method))
    odd = next(folder.glob("*.safetensors"), None)
    if odd is not None:
        what = f"{odd.name} of another model is in this folder"
        raise OutputError(what, where=folder, hint="choose another --out")


def compress_to_onnx(
    model: PreTrainedModel,
    method: CompressionMethod,
    folder: Path,
    prepared: Prepared,
    listener: Listener,
    scratch: Path | None = None,
) -> OnnxChecked:
    """Compress a model in place and write the very codes the solver chose; nothing is there unless it was verified.

    Args:
        model: becomes the model that the folder holds.
        method: the compression method.
        folder: created if missing.
        prepared: calibration sample.
        listener: receives what it is calibrated on, and one event a matrix.
        scratch: a folder for solved blocks, so that a killed compression goes on.

    Raises:
        ConfigError, DataError: as `calibration_of`.
        ModelError, VerifyError: as `write_onnx` and `compare_in_onnx`.
        OutputError: if it cannot be written.
    """
    refuse_unmerged(model)
    calibration = calibration_of(prepared) if method.reads else None
    if calibration is not None:
        listener(calibration.event)
    batches = calibration.batches if calibration else []
    quantised = compress_model(model, batches, method, listener, scratch=scratch)
    texts = [list(example.input_ids) for example in prepared.calibration_examples]
    checked: list[OnnxChecked] = []

    def fill(partial: Path) -> None:
        write_onnx(model, quantised, partial / FILE)
        config: Any = copy.deepcopy(model.config)
        config.dtype = torch.float32
        config.architectures = [type(model).__name__]
        config.save_pretrained(partial)
        words = prepared.backbone.folder
        write_words(partial, prepared.backbone.tokenizer, words)
        size = sum(one.stat().st_size for one in partial.glob(f"{FILE}*"))
        gap, divergence = compare_in_onnx(partial / FILE, model, texts)
        checked.append(OnnxChecked(size, len(quantised), gap, divergence))

    write_folder(folder, fill)
    return checked[0]


@torch.no_grad()
def compare_in_onnx(
    file: Path, model: PreTrainedModel, texts: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Run a file in ONNX Runtime, without and with its cache, and compare what it predicts with the model.

        gap = max |log p - log q|,   divergence = mean_t sum_v p (log p - log q),   p in PyTorch, q in ONNX Runtime

    Args:
        file: as `write_onnx` makes it.
        model: what it was made from, float32.
        texts: token ids; the first `POSITIONS` of them are compared.

    Returns:
        gap and divergence, nats.

    Raises:
        VerifyError: if it cannot be run, or gap is above `CLOSE`, or divergence above `ALIKE`.
        ModelError: if there is no token.
    """
    decoder, call = OnnxDecoder(file), cast(Any, model)
    place = next(model.parameters()).device
    gaps, each, left = [0.0], list[torch.Tensor](), POSITIONS
    for text in texts:
        ids = list(text[:left])
        left -= len(ids)
        if ids:
            logits: torch.Tensor = call(torch.tensor([ids], device=place)).logits[0]
            p, q = logits.cpu().double().log_softmax(-1), decoder.log_probabilities(ids)
            gaps.append(float((p - q).abs().max()))
            each.append((p.exp() * (p - q)).sum(-1))
    if not each:
        raise ModelError("no token to compare log-probabilities on", where=file)
    gap, divergence = max(gaps), float(torch.cat(each).mean())
    if not (gap <= CLOSE and divergence <= ALIKE):
        raise VerifyError(
            f"in ONNX Runtime log-probabilities differ by {gap:.2g}, bound {CLOSE:g}, and the KL is {divergence:.2g}, "
            f"bound {ALIKE:g}",
            where=file,
        )
    return gap, divergence
