"""Where the files of a model are: a folder, the embedded model, or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from edgetune.core.errors import ModelError
from edgetune.models.embedded import EMBEDDED, embedded_folder
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
"""What is downloaded: weights as safetensors only, never code or pickles."""


def find_folder(source: str | Path) -> Path:
    """Return the folder of a model: the given one, the embedded one, or a download from the Hub.

    Raises:
        ModelError: no such folder, no config.json in it, or no such model on the Hub.
    """
    try:
        path = Path(source).expanduser()
        found = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a link to itself, no such user
        what = f"no such folder: {str(error)[:200]}"
        raise ModelError(what, hint="give a model folder, a model id or 'embedded'") from error
    if source == EMBEDDED:
        path = embedded_folder()
    elif not found:
        if (
            isinstance(source, Path)
            or source.startswith((".", "~", "/"))
            or not 0 < len(Path(source).parts) < 3
        ):
            raise ModelError(
                "no such folder", where=path, hint="give a model folder, a model id or 'embedded'"
            )
        path = snapshot(source)
    if not path.is_dir():
        raise ModelError(
            "this is a file, not a model folder", where=path, hint="give the folder with config.json"
        )
    if not (path / "config.json").is_file():
        raise ModelError("no config.json in this folder", where=path, hint="give a Hugging Face model folder")
    return path


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
