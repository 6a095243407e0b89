"""From a model to a folder for ONNX Runtime: compress, write the graph, read the codes back, and run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import placement
from edgetune.core.errors import VerifyError
from edgetune.core.events import Listener
from edgetune.export.onnx_graph import refuse_for_onnx, write_onnx
from edgetune.export.onnx_runtime import OnnxDecoder
from edgetune.recipe.prepare import Prepared
from edgetune.run.graph_folder import (
    ALIKE,
    CLOSE,
    Compared,
    GraphChecked,
    compress_to_graph,
    differences,
    predicted,
    refuse_for_graph,
    some_of,
)

FILE = "model.onnx"


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
    refuse_for_graph("onnx", prepared, folder)
    refuse_for_onnx(model, placement(model, method))


def compress_to_onnx(
    model: PreTrainedModel,
    method: CompressionMethod,
    folder: Path,
    prepared: Prepared,
    listener: Listener,
    scratch: Path | None = None,
) -> GraphChecked:
    """Compress a model in place and write it for ONNX Runtime: as `compress_to_graph`.

    Raises:
        ConfigError, DataError, OutputError: as `compress_to_graph`.
        ModelError, VerifyError: as `write_onnx` and `compare_in_onnx`.
    """
    return compress_to_graph(
        model, method, folder, prepared, listener, scratch,
        name=FILE,
        write=lambda quantised, file: write_onnx(model, quantised, file),
        compare=lambda _, file, texts: compare_in_onnx(file, model, texts),
    )  # fmt: skip


def compare_in_onnx(file: Path, model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Compared:
    """Run a file in ONNX Runtime, without and with its cache, and compare what it predicts with the model.

    Args:
        file: as `write_onnx` makes it.
        model: what it was made from, float32.
        texts: token ids; the first `POSITIONS` of them are compared.

    Raises:
        VerifyError: if it cannot be run, or the gap is above `CLOSE`, or the divergence above `ALIKE`.
        ModelError: if there is no token.
    """
    decoder, some = OnnxDecoder(file), some_of(texts)
    theirs = [decoder.log_probabilities(ids) for ids in some]
    gap, divergence = differences(predicted(model, some), theirs, file)
    if not (gap <= CLOSE and divergence <= ALIKE):
        raise VerifyError(
            f"in ONNX Runtime log-probabilities differ by {gap:.2g}, bound {CLOSE:g}, and the KL is {divergence:.2g}, "
            f"bound {ALIKE:g}",
            where=file,
        )
    return Compared(gap, divergence)
