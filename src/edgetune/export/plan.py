"""What a GGUF file will hold, decided from shapes and settings alone, before a model is tuned for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgetune.core.errors import ModelError
from edgetune.core.quantised import GRIDS, BlockGrid
from edgetune.export.architectures import architecture_of
from edgetune.export.layout import Value
from edgetune.export.speech import Speech
from edgetune.export.tensors import FloatType, PlannedTensor, planned_tensors
from edgetune.export.tokenizer import Vocabulary, vocabulary

FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14,
    "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "MXFP4": 38, "NVFP4": 39,
}  # fmt: skip
"""ggml type of most matrices to `general.file_type`: of the mixes of a K type the one called small."""

FLOAT_BYTES = {"F32": 4, "F16": 2}
ALIGNMENT = 32
"""GGUF's default: every tensor begins at a multiple of so many bytes."""

LONGEST_NAME = 63
"""Bytes; the longest tensor name ggml takes."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """Everything about a file but the weights and where they came from; what is planned is what is written.

    Args:
        architecture: `general.architecture`.
        parameters: hyper-parameters by key, without the architecture's prefix.
        vocabulary: tokenizer and chat template.
        tensors: in the file's order.
        context: tokens the file computes exactly.
        notes: what differs from the model's own files, for a person.
    """

    architecture: str
    parameters: Mapping[str, Value]
    vocabulary: Vocabulary
    tensors: tuple[PlannedTensor, ...] = field(repr=False)
    context: int
    notes: tuple[str, ...]

    @property
    def file_type(self) -> str:
        """The most frequent type of the matrices, a quantised one if there is any; llama.cpp names a file after it."""
        kinds = Counter(tensor.type for tensor in self.tensors if len(tensor.shape) == 2)
        return max(kinds, key=lambda kind: (kind in GRIDS, kinds[kind]))

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors with the gaps between them; a file is larger by its header, mostly the vocabulary."""
        return sum(-(-size_of(tensor) // ALIGNMENT) * ALIGNMENT for tensor in self.tensors)


def size_of(tensor: PlannedTensor) -> int:
    """Return the bytes of a tensor as stored."""
    count = prod(tensor.shape)
    grid = GRIDS.get(tensor.type)
    return count * FLOAT_BYTES[tensor.type] if grid is None else count // grid.block * grid.block_bytes


def plan_export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    speech: Speech,
    *,
    grids: Mapping[str, BlockGrid],
    float_type: FloatType = "F16",
    pre_tokenizer: str | None = None,
) -> ExportPlan:
    """Plan a file, refusing whatever its writing would refuse.

    Args:
        model: a model of a supported family; only its configuration and shapes are read.
        tokenizer: its tokenizer.
        speech: what the model is trained on.
        grids: parameter name to its grid, for the matrices that are going to be quantised.
        float_type: type of the other matrices. Vectors and norms are always F32.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it cannot be identified.

    Raises:
        ModelError: if the family, a setting of it, the tokenizer or a tensor cannot be translated exactly.
    """
    for grid in grids.values():
        if grid.name not in GRIDS:
            raise ModelError(
                f"GGUF has no grid {grid.name}",
                hint="edgetune compress --format compressed-tensors writes it",
            )
    architecture = architecture_of(model.config)
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    parameters = dict(architecture.parameters(model.config)) | {"vocab_size": rows}
    tensors = planned_tensors(model, grids, float_type)
    _check_names(tensors)
    words = vocabulary(tokenizer, rows, speech, pre_tokenizer=pre_tokenizer)
    context = parameters["context_length"]
    if not isinstance(context, int) or context < 1:
        raise ModelError(f"a context of {context!r} tokens", where="config.json")
    return ExportPlan(
        architecture=architecture.name,
        parameters=parameters,
        vocabulary=words,
        tensors=tensors,
        context=context,
        notes=(*architecture.notes(model.config), *words.notes),
    )


def _check_names(tensors: tuple[PlannedTensor, ...]) -> None:
    times = Counter(tensor.name for tensor in tensors)
    for name, count in times.items():
        if count > 1 or len(name.encode()) > LONGEST_NAME:
            raise ModelError("GGUF has no place for this tensor", where=name)
