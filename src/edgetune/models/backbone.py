"""Load a causal language model as a frozen, named base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgetune.core.errors import ModelError
from edgetune.core.quantised import BaseTensor
from edgetune.core.widths import widths_of
from edgetune.models.by_layer import by_layer
from edgetune.models.config import load_config
from edgetune.models.digest import files_digest
from edgetune.models.gguf.opening import gguf_model
from edgetune.models.gguf.tokenizer import gguf_tokenizer
from edgetune.models.gguf.weights import GgufWeights
from edgetune.models.identity import base_digest, prompt_digest
from edgetune.models.packed import PackedWeights, model_class, turned_in
from edgetune.models.packing import Packing, packing_in
from edgetune.models.quiet import quiet
from edgetune.models.source import find_model
from edgetune.models.stale import without_stale_buffers
from edgetune.models.stored import stored_size, weight_parts
from edgetune.models.tokenizer import first_line, load_tokenizer
from edgetune.models.weights import stored_shapes, weight_files

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types a model can be loaded in."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen base model with its tokenizer and its name.

    Args:
        model: in evaluation mode, without gradients.
        tokenizer: the tokenizer of the same folder.
        digest: `identity.base_digest` of the weights as stored and of the settings that decide the forward pass: the
            same for every type the model is loaded in.
        prompt_digest: `identity.prompt_digest`: how text becomes tokens, and where answers end.
        source: what the caller asked for.
        size_bytes: stored size of the weight files.
        dtype: the type the weights are held in.
        folder: where the files are: a model folder, or the GGUF file itself.
        base: the stored tensors by name, of a model that was opened without its matrices and computes only through a
            handle over these; None if the model holds its weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    prompt_digest: str
    source: str
    size_bytes: int
    dtype: torch.dtype
    folder: Path
    base: Mapping[str, BaseTensor] | None = None

    @property
    def words(self) -> Path:
        """The file that the tokenizer comes from."""
        return self.folder if self.folder.is_file() else self.folder / "tokenizer.json"


def load_backbone(
    source: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    matrices: bool = True,
) -> Backbone:
    """Load a model and its tokenizer, after checking that the files are whole and safe.

    What a checkpoint stores beside the weights is treated as in transformers: an output head beside a configuration
    that ties it to the embeddings is used if its values differ, and buffers of old checkpoints are ignored. Other
    tensors that the configuration has no place for are refused. Several threads may load; one at a time does.

    Args:
        source: a Hugging Face model folder, whose layers may be packed by GPTQ or compressed-tensors, a GGUF file,
            `embedded` for the shipped model, or a model id on the Hub.
            A `Path` is never taken for an id.
        dtype: float32, float16 or bfloat16; None keeps the stored type (float32 for a GGUF file with blocks and for
            packed layers).
        device: where the weights go.
        matrices: False where nobody asks the model itself for its matrices: those of a GGUF file on the CPU stay in
            the file, mapped (`Backbone.base`). Any other model is loaded as always.

    Returns:
        The model ready for inference: evaluation mode, no gradients, key-value cache on by default.

    Raises:
        ModelError: nothing there, a file missing, damaged or pickled, code in the repository, weights quantised in a
            way that is not read, weights that do not fit the configuration, NaN or infinite weights (also from a narrow
            `dtype`), a tokenizer missing or larger than the embedding. The message names the file.
        MissingExtraError: a GGUF file, and `gguf` is not installed.
    Cost: reads the weights twice (digest, load); memory of one copy, or without the matrices of the file's pages.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"a model cannot be loaded as {dtype}", hint="use float32, float16 or bfloat16")
    folder = find_model(source)
    with quiet():
        if folder.is_file():
            opened = _open_file(folder, dtype, matrices or torch.device(device).type != "cpu")
        else:
            opened = _open_folder(folder, dtype)
    model = opened.model
    _check_weights(model, opened.base, folder)
    if _heads_differ(model):
        # Both are stored, so transformers has not tied them; a later call must not tie them either.
        model.config.tie_word_embeddings = False
    model.config.use_cache = True
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return Backbone(
        model=_placed(model, device),
        tokenizer=opened.tokenizer,
        digest=base_digest(opened.weights, opened.config),
        prompt_digest=prompt_digest(opened.tokenizer, model),
        source=str(source),
        size_bytes=stored_size(folder),
        dtype=model.dtype,
        folder=folder,
        base=opened.base,
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a folder or a file holds, and the digest of its weights as stored."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    weights: str
    base: Mapping[str, BaseTensor] | None = None


def _open_folder(folder: Path, dtype: torch.dtype | None) -> _Opened:
    files = weight_files(folder)
    config, packing = load_config(folder, stored_shapes(files)), packing_in(folder)
    if packing is not None:
        model, digest = _packed_model(folder, files, config, packing, dtype or torch.float32)
        return _Opened(model, load_tokenizer(folder, _rows(model)), config, digest)
    model = _model(folder, files, config, dtype)
    return _Opened(model, load_tokenizer(folder, _rows(model)), config, files_digest(files))


def _open_file(path: Path, dtype: torch.dtype | None, matrices: bool) -> _Opened:
    weights = GgufWeights(path)
    model = gguf_model(weights, dtype, matrices=matrices)
    base = None if matrices else {name: weights.as_stored(name) for name in weights}
    tokenizer = gguf_tokenizer(weights.said, _rows(model))
    return _Opened(model, tokenizer, weights.config, weights.digest, base)


def rows_of(backbone: Backbone) -> int:
    """Return how many tokens the model has an embedding for."""
    return _rows(backbone.model)


def _heads_differ(model: PreTrainedModel) -> bool:
    loaded: Any = model
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False)
    return bool(tied) and head is not None and head.weight is not embedding.weight


def _rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _model(
    folder: Path, files: Sequence[Path], config: PreTrainedConfig, dtype: torch.dtype | None
) -> PreTrainedModel:
    try:
        # Layers of different widths are cut while the model has no weights yet.
        kind: Any = AutoModelForCausalLM if widths_of(config) is None else by_layer(config)
        loaded: Any = kind.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except SafetensorError as error:
        raise ModelError(f"the weights are damaged: {first_line(error)}", where=folder) from error
    except Exception as error:  # the library raises many unrelated types
        if "ignore_mismatched_sizes" in str(error):
            sentence = "tensors have another shape than the configuration says"
            raise ModelError(sentence, where=folder, hint="use the config.json of these weights") from error
        raise ModelError(f"cannot load this model: {first_line(error)}", where=folder) from error
    model: PreTrainedModel
    model, report = loaded
    report["unexpected_keys"] = without_stale_buffers(report.get("unexpected_keys", ()), files)
    _check_report(report, folder)
    return model


def _packed_model(
    folder: Path, files: Sequence[Path], config: PreTrainedConfig, packing: Packing, dtype: torch.dtype
) -> tuple[PreTrainedModel, str]:
    """Return the model of a folder with packed layers, its weights dequantised exactly, and their digest."""
    try:
        kind = model_class(config)
        with torch.device("meta"):
            turned = turned_in(kind(config))
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(f"no model has this configuration: {first_line(error)}", where=folder) from error
    weights = PackedWeights(files, packing, turned)
    values = {name: weights[name].to(dtype) for name in weights}
    try:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=values, dtype=dtype, output_loading_info=True
        )
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"cannot load this model: {first_line(error)}", where=folder) from error
    left = without_stale_buffers(report.get("unexpected_keys", ()), files)
    report["unexpected_keys"] = set(left) - weights.empty_biases(left)
    _check_report(report, folder)
    model.config.name_or_path = str(folder)
    return model, weights.digest


def _check_report(report: dict[str, Any], folder: Path) -> None:
    sentences = {
        "missing_keys": "the weight files lack tensors of this configuration",
        "unexpected_keys": "the weight files hold tensors this configuration does not have",
        "mismatched_keys": "tensors have another shape than this configuration says",
        "error_msgs": "the weights could not be read",
    }
    for kind, sentence in sentences.items():
        found = sorted(str(one)[:200] for one in report.get(kind, ()))
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ModelError(f"{sentence}: {', '.join(found[:3])}{more}", where=folder)


def _check_weights(model: PreTrainedModel, base: Mapping[str, BaseTensor] | None, folder: Path) -> None:
    for name, weight in weight_parts(model, base):
        for part in weight.parts():
            low, high = part.aminmax() if part.numel() else (part.new_zeros(()),) * 2
            if not (torch.isfinite(low) and torch.isfinite(high)):
                hint = f"the stored weights are damaged, or do not fit {weight.dtype}"
                raise ModelError(f"{name} holds NaN or infinite weights", where=folder, hint=hint)


def _placed(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    try:
        placed: Any = model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"cannot use the device {device}: {first_line(error)}", hint="use cpu") from error
    return placed  # type: ignore[no-any-return]
