"""Versions of everything a figure depends on."""

from __future__ import annotations

import importlib.metadata
import platform

LIBRARIES = (
    "edgetune",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "rouge",
    "peft",
    "datasets",
    "gguf",
    "xllamacpp",
    "matplotlib",
)


def versions() -> dict[str, str]:
    """Return the version of Python, of the platform and of every library that is installed.

    Returns:
        Name to version; optional libraries that are not installed are left out.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
