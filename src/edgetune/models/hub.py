"""Download of a model from the Hugging Face Hub: weights as safetensors only, never code or pickles."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from edgetune.core.errors import ModelError
from edgetune.models.quiet import quiet

PATTERNS = (
    "*.json",
    "*.safetensors",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
)


def snapshot(name: str) -> Path:
    """Return the local folder of a model on the Hub, downloaded if it is not in the cache.

    Args:
        name: `owner/name`, or the name of a model without owner.

    Raises:
        ModelError: no such model, no network, or a full disk.
    """
    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:  # the library raises many unrelated types
        hint = "no such folder here either; check the spelling and the network"
        raise ModelError(
            f"cannot fetch this model from the Hugging Face Hub: {error}", where=name, hint=hint
        ) from error
