"""Load a causal language model as a frozen, named base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgetune.core.errors import ModelError
from edgetune.models.digest import files_digest
from edgetune.models.identity import base_digest, prompt_digest
from edgetune.models.quiet import quiet
from edgetune.models.source import find_folder
from edgetune.models.weights import weight_files

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types a model can be loaded in."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


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
        folder: where the files are.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    prompt_digest: str
    source: str
    size_bytes: int
    dtype: torch.dtype
    folder: Path


def load_backbone(
    source: str | Path, *, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
) -> Backbone:
    """Load a model and its tokenizer, after checking that the files are whole and safe.

    Args:
        source: a Hugging Face model folder, `embedded` for the shipped model, or a model id on the Hub. A `Path` is
            never taken for an id.
        dtype: float32, float16 or bfloat16; None keeps the stored type.
        device: where the weights go.

    Returns:
        The model ready for inference: evaluation mode, no gradients, key-value cache on by default.

    Raises:
        ModelError: nothing there, a file missing, damaged or pickled, code in the repository, quantised weights,
            weights that do not fit the configuration, NaN or infinite weights (also from a narrow `dtype`), a
            tokenizer missing or larger than the embedding. The message names the file.
    Cost: reads the weights twice (digest, load); memory of one copy.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"a model cannot be loaded as {dtype}", hint="use float32, float16 or bfloat16")
    folder = find_folder(source)
    files = weight_files(folder)
    with quiet():
        config = _config(folder)
        tokenizer = _tokenizer(folder)
        model = _model(folder, config, dtype)
    _check_weights(model, folder)
    _check_tokenizer(tokenizer, int(model.get_input_embeddings().weight.shape[0]), folder)  # type: ignore[index]
    model.config.use_cache = True
    model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return Backbone(
        model=_placed(model, device),
        tokenizer=tokenizer,
        digest=base_digest(files_digest(files), config),
        prompt_digest=prompt_digest(tokenizer, model),
        source=str(source),
        size_bytes=sum(file.stat().st_size for file in files),
        dtype=model.dtype,
        folder=folder,
    )


def rows_of(backbone: Backbone) -> int:
    """Return how many tokens the model has an embedding for."""
    embedding: Any = backbone.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _config(folder: Path) -> PreTrainedConfig:
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(
            f"cannot use this configuration: {_first(error)}", where=folder / "config.json"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        hint = "use the model it was quantised from"
        raise ModelError("this model is already quantised", where=folder / "config.json", hint=hint)
    return config  # type: ignore[no-any-return]


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # Without a vocabulary file, transformers 5 would make an empty tokenizer instead of raising.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            "no tokenizer in this folder", where=folder, hint="copy tokenizer.json of the same model"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(f"cannot use this tokenizer: {_first(error)}", where=folder) from error


def _model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"the weights are damaged: {_first(error)}", where=folder) from error
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(f"cannot load this model: {_first(error)}", where=folder) from error
    model: PreTrainedModel
    model, report = loaded
    _check_report(report, folder)
    return model


def _check_report(report: dict[str, Any], folder: Path) -> None:
    sentences = {
        "missing_keys": "the weight files lack tensors of this configuration",
        "unexpected_keys": "the weight files hold tensors this configuration does not have",
        "mismatched_keys": "tensors have another shape than this configuration says",
        "error_msgs": "the weights could not be read",
    }
    for kind, sentence in sentences.items():
        found = sorted(map(str, report.get(kind, ())))
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ModelError(f"{sentence}: {', '.join(found[:3])}{more}", where=folder)


def _check_weights(model: PreTrainedModel, folder: Path) -> None:
    for name, weight in model.named_parameters():
        low, high = weight.detach().aminmax() if weight.numel() else (weight.new_zeros(()),) * 2
        if not (torch.isfinite(low) and torch.isfinite(high)):
            hint = f"the stored weights are damaged, or do not fit {weight.dtype}"
            raise ModelError(f"{name} holds NaN or infinite weights", where=folder, hint=hint)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> None:
    beyond = sorted(token for token, index in tokenizer.get_vocab().items() if index >= rows)
    if beyond == [tokenizer.pad_token]:
        # Often added for training without a row for it. Padding is masked, so another id serves as well.
        tokenizer.pad_token = None
    elif beyond:
        some = ", ".join(map(repr, beyond[:3]))
        raise ModelError(
            f"the tokenizer has tokens the model's {rows} rows do not reach: {some}", where=folder
        )


def _placed(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    try:
        placed: Any = model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"cannot use the device {device}: {_first(error)}", hint="use cpu") from error
    return placed  # type: ignore[no-any-return]


def _first(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
