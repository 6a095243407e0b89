"""edgetune: fine-tune a language model across edge devices, compress it in one shot, hand back a file they run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetune.federation.load import load

try:
    __version__ = version("edgetune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is asked for, so that `edgetune --help` does not wait for torch."""
    if name == "load":
        from edgetune.federation.load import load

        return load
    raise AttributeError(f"module 'edgetune' has no attribute {name!r}")
