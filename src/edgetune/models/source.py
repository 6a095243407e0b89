"""Where the files of a model are: a folder, a GGUF file, the embedded model, or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import MAGIC
from edgetune.models.embedded import EMBEDDED, embedded_folder
from edgetune.models.quiet import quiet
from edgetune.models.shelf import SHELF, fetched

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


_KINDS = f"give a model folder, a GGUF file, a model id, 'embedded' or {', '.join(map(repr, SHELF))}"


def find_model(source: str | Path) -> Path:
    """Return where a model is: a given folder or GGUF file, the embedded one, a fetched one, or a download.

    Raises:
        ModelError: no such folder or file, no config.json in it, a model that is not fetched yet, or no such
            model on the Hub.
    """
    try:
        path = Path(source).expanduser()
        found = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a link to itself, no such user
        raise ModelError(f"no such folder: {str(error)[:200]}", hint=_KINDS) from error
    if source == EMBEDDED:
        path = embedded_folder()
    elif not found and source in SHELF:
        path = fetched(str(source))
    elif not found:
        if (
            isinstance(source, Path)
            or source.startswith((".", "~", "/"))
            or source.lower().endswith(".gguf")
            or not 0 < len(Path(source).parts) < 3
        ):
            raise ModelError("no such folder or file", where=path, hint=_KINDS)
        path = snapshot(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = "give a Hugging Face model folder or a GGUF file"
            raise ModelError("no config.json in this folder", where=path, hint=hint)
    elif not is_gguf(path):
        hint = "give the folder with config.json, or a GGUF file"
        raise ModelError("this is neither a model folder nor a GGUF file", where=path, hint=hint)
    return path


def is_gguf(path: Path) -> bool:
    """Tell whether a file begins as a GGUF file does.

    Raises:
        ModelError: if it cannot be read.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"cannot read this file: {error.strerror}", where=path) from error


def here(source: str) -> str:
    """Return where a model is on this machine, which is asked for nothing else: nobody elsewhere is.

    Raises:
        ModelError: if it would have to be downloaded.
    """
    if source == EMBEDDED or source in SHELF:
        return source
    try:
        if Path(source).expanduser().exists():
            return source
        return snapshot_download(source, allow_patterns=list(PATTERNS), local_files_only=True)
    except Exception as error:  # the library raises many unrelated types, and there are names of no file
        hint = "copy the server's model folder, and name it with --model"
        raise ModelError("this base model is not here", where=source, hint=hint) from error


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
