"""What a base model is beside its weights: the settings that decide its forward pass, and how text becomes tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ELSEWHERE = frozenset(
    {
        "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype",
        "eos_token_id", "id2label", "label2id", "pad_token_id", "problem_type", "sep_token_id",
        "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Settings that leave the logits of given tokens as they are; the ends of answers are part of `prompt_digest`."""


def base_digest(weights: str, config: PreTrainedConfig) -> str:
    """Name a base model: its weights, and every setting of its configuration that is not its class's default.

        SHA-256(digest of the weights || canonical JSON of the settings)

    Defaults are left out so that a library that learns a new setting does not rename every model. The type that the
    weights are loaded in plays no part.

    Args:
        weights: `models.digest.files_digest` of the stored weights.
        config: as loaded, from config.json.
    """
    given, default = config.to_dict(), _defaults(config)
    kept = {
        key: value
        for key, value in given.items()
        if key not in ELSEWHERE and value != default.get(key, _NEVER)
    }
    kept["model_type"] = config.model_type
    return hashlib.sha256(f"{weights} {canonical(kept)}".encode()).hexdigest()


def prompt_digest(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> str:
    """Name how text becomes tokens and where an answer ends: vocabulary, merges, rules, special tokens, chat template.

    Padding and truncation, which calls switch on and off, play no part.

    Args:
        tokenizer: as loaded.
        model: its generation configuration names end tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    said = {
        "rules": {key: value for key, value in rules.items() if key not in ("padding", "truncation")},
        "special": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "template": tokenizer.chat_template,
        "ends": [getattr(holder, "eos_token_id", None) for holder in (model.generation_config, model.config)],
    }
    return hashlib.sha256(canonical(said).encode()).hexdigest()


def canonical(value: Any) -> str:
    """Return JSON with sorted keys, whole numbers without a fraction, and what JSON lacks as text."""
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


_NEVER = object()


def _defaults(config: PreTrainedConfig) -> dict[str, Any]:
    try:
        return type(config)().to_dict()
    except Exception:  # a class that cannot be made without arguments has no defaults
        return {}
