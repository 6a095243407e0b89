"""Write a model, its tokenizer and its provenance as one GGUF file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgetune.core.files import write_atomic
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.architectures import architecture_of
from edgetune.export.gguf_read import gguf_library
from edgetune.export.layout import Value
from edgetune.export.tensors import FloatType, Stored, plan
from edgetune.export.tokenizer import Vocabulary, vocabulary

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}
"""ggml type of most matrices to `general.file_type`."""

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
    """Write one self-contained file that llama.cpp runs.

    Args:
        path: the file; replaced atomically.
        model: a model of a supported family; parameters named in `quantised` are not read from it.
        tokenizer: its tokenizer, with the chat template if there is one.
        quantised: parameter name to matrix; the codes are packed as they are, nothing is rounded again.
        float_type: type of the other matrices. Vectors and norms are always F32.
        metadata: provenance, stored as `edgetune.<key>`; `name` is stored as `general.name`.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, where it cannot be identified.

    Returns:
        `path`.

    Raises:
        ModelError: if the family, tokenizer or a tensor cannot be translated exactly.
        OutputError: if the file cannot be written.
        MissingExtraError: if `gguf` is not installed.
    Cost: one tensor in memory at a time beyond the model.
    """
    gguf = gguf_library()
    stored = list(plan(model, quantised, float_type))
    words = vocabulary(
        tokenizer,
        model.config.vocab_size,
        pre_tokenizer=pre_tokenizer,
        stop_ids=_stop_ids(model),
    )

    def write(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, architecture_of(model.config).name)
        try:
            _write_header(writer, gguf, model, stored, metadata or {})
            _write_vocabulary(writer, words)
            _write_tensors(writer, gguf, stored)
        finally:
            writer.close()

    write_atomic(path, write)
    return path


def _stop_ids(model: PreTrainedModel) -> list[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return [found] if isinstance(found, int) else list(found or [])


def _write_header(
    writer: Any, gguf: Any, model: PreTrainedModel, stored: list[Stored], metadata: Mapping[str, str]
) -> None:
    architecture = architecture_of(model.config)
    kinds = Counter(tensor.type for tensor in stored if len(tensor.shape) == 2)
    # A file is named after its most frequent quantised type, as llama.cpp's own quantiser does.
    main = max(kinds, key=lambda kind: (kind.startswith("Q"), kinds[kind]))
    writer.add_name(metadata.get("name", model.config.model_type))
    writer.add_file_type(FILE_TYPES[main])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in architecture.parameters(model.config).items():
        _write_value(writer, f"{architecture.name}.{key}", value)
    for key, text in metadata.items():
        if key != "name":
            writer.add_string(PREFIX + key, text)


def _write_value(writer: Any, key: str, value: Value) -> None:
    writers = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    writers[type(value)](key, value)


def _write_vocabulary(writer: Any, words: Vocabulary) -> None:
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


def _write_tensors(writer: Any, gguf: Any, stored: list[Stored]) -> None:
    """Announce every tensor, then write them one by one, so that only one is in memory."""
    for tensor in stored:
        kind = gguf.GGMLQuantizationType[tensor.type]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(tensor.shape, dtype=np.int64)) // block * size
        rows = gguf.quant_shape_to_byte_shape(tensor.shape, kind) if block > 1 else tensor.shape
        dtype = {"F32": np.float32, "F16": np.float16}.get(tensor.type, np.uint8)
        writer.add_tensor_info(tensor.name, rows, np.dtype(dtype), count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in stored:
        writer.write_tensor_data(tensor.load())
