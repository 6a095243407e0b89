"""The model that ships with the package, so that everything runs without a download."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edgetune.core.errors import ModelError

EMBEDDED = "embedded"
"""The source name of the shipped model."""


def embedded_folder() -> Path:
    """Return the folder of the shipped model.

    Raises:
        ModelError: this installation lacks it, or is not unpacked on a disk.
    """
    folder = Path(str(resources.files("edgetune.models") / "embedded"))
    if not (folder / "config.json").is_file():
        raise ModelError(
            "this installation lacks the embedded model", where=folder, hint="reinstall edgetune"
        )
    return folder
