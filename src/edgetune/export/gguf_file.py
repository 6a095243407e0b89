"""Write a planned file: a model, its tokenizer and its provenance as one GGUF file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgetune.core.files import unwritable
from edgetune.core.gguf_read import gguf_library
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.composing import NFC, NORMALIZER
from edgetune.export.layout import Value
from edgetune.export.plan import FILE_TYPES, ExportPlan, plan_export
from edgetune.export.speech import speech_of
from edgetune.export.tensors import FloatType, Stored, stored_tensors
from edgetune.export.tokenizer import Vocabulary

PREFIX = "edgetune."


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantised: Mapping[str, QuantisedMatrix],
    float_type: FloatType = "F16",
    metadata: Mapping[str, str] | None = None,
    pre_tokenizer: str | None = None,
) -> Path:
    """Plan a file for a model that its tokenizer's own chat template speaks to, and write it at once.

    Args:
        path: the file; it is neither checked nor renamed afterwards.
        model: a model of a supported family; answers end where its generation config says.
        tokenizer, float_type, pre_tokenizer: as in `plan_export`.
        quantised, metadata: as in `write_planned`.

    Raises:
        ModelError, OutputError, MissingExtraError: as `plan_export` and `write_planned`.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = [named] if isinstance(named, int) else list(named or [])
    grids = {name: matrix.grid for name, matrix in quantised.items()}
    speech = speech_of(tokenizer, ends)
    plan = plan_export(
        model, tokenizer, speech, grids=grids, float_type=float_type, pre_tokenizer=pre_tokenizer
    )
    return write_planned(path, plan, model, quantised=quantised, metadata=metadata)


def write_planned(
    path: Path,
    plan: ExportPlan,
    model: PreTrainedModel,
    *,
    quantised: Mapping[str, QuantisedMatrix],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write one self-contained file that llama.cpp runs, exactly as it was planned.

    Args:
        path: the file; the caller gives it its final name when it has been checked (`core.files.write_atomic`).
        plan: what to write.
        model: the weights; parameters named in `quantised` are not read from it.
        quantised: parameter name to matrix; the codes are packed as they are, nothing is rounded again.
        metadata: provenance, stored as `edgetune.<key>`; `name` is stored as `general.name`.

    Returns:
        `path`.

    Raises:
        ModelError: if a tensor is not what was planned, or not finite.
        OutputError: if the file cannot be written.
        MissingExtraError: if `gguf` is not installed.
    Cost: one tensor in memory at a time beyond the model.
    """
    stored = list(stored_tensors(model, plan.tensors, quantised))
    given = {"name": model.config.model_type} | dict(metadata or {})
    with gguf_writer(path, plan.architecture) as writer:
        write_header(writer, plan, given)
        _write_tensors(writer, gguf_library(), stored)
    return path


@contextmanager
def gguf_writer(path: Path, architecture: str) -> Iterator[Any]:
    """Lend the writer of `gguf` for one file.

    Args:
        path: the file.
        architecture: `general.architecture`.

    Raises:
        OutputError: if the file cannot be written.
        MissingExtraError: if `gguf` is not installed.
    """
    library = gguf_library()
    try:
        writer = library.GGUFWriter(path, architecture)
        try:
            yield writer
        finally:
            writer.close()
    except OSError as error:
        # A write that numpy could only do in part carries no reason.
        short = error if error.strerror else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise unwritable(short, path) from error


def write_small(writer: Any, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write what a writer was told of a file, and tensors that fit into memory together, in their own types."""
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()


def write_header(writer: Any, plan: ExportPlan, metadata: Mapping[str, str]) -> None:
    """Give the writer of `gguf` everything of a plan but the tensors."""
    writer.add_name(_name(metadata.get("name", plan.architecture), plan.vocabulary))
    writer.add_file_type(FILE_TYPES[plan.file_type])
    writer.add_quantization_version(gguf_library().GGML_QUANT_VERSION)
    for key, value in plan.parameters.items():
        _write_value(writer, f"{plan.architecture}.{key}", value)
    for key, text in metadata.items():
        if key != "name":
            writer.add_string(PREFIX + key, text)
    if plan.vocabulary.composes:
        writer.add_string(NORMALIZER, NFC)
    write_vocabulary(writer, plan.vocabulary)


def _name(name: str, words: Vocabulary) -> str:
    """Return a name by which llama.cpp treats special tokens as the tokenizer does: it looks for Phi-3 in it."""
    return f"Phi-3 {name}" if words.strips else re.sub("phi-?3", "phi", name, flags=re.IGNORECASE)


def write_vocabulary(writer: Any, words: Vocabulary) -> None:
    """Give the writer of `gguf` a tokenizer and its chat template."""
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    for role, index in words.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    for flag, value in words.flags.items():
        writer.add_bool(f"tokenizer.ggml.{flag}", value)
    if words.chat_template is not None:
        writer.add_chat_template(words.chat_template)


def _write_value(writer: Any, key: str, value: Value) -> None:
    writers = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    writers[type(value)](key, value)


def _write_tensors(writer: Any, library: Any, stored: list[Stored]) -> None:
    """Announce every tensor, then write them one by one, so that only one is in memory."""
    for tensor in stored:
        shape, name = tensor.planned.shape, tensor.planned.type
        kind = library.GGMLQuantizationType[name]
        block, size = library.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape, dtype=np.int64)) // block * size
        rows = library.quant_shape_to_byte_shape(shape, kind) if block > 1 else shape
        dtype = {"F32": np.float32, "F16": np.float16}.get(name, np.uint8)
        writer.add_tensor_info(tensor.planned.name, rows, np.dtype(dtype), count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in stored:
        writer.write_tensor_data(tensor.load())
