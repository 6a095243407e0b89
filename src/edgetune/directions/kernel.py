"""Which implementation forms perturbed tensors: the compiled kernel or the torch reference, equal bit for bit."""

from __future__ import annotations

import os

from edgetune.core.errors import ConfigError, nearest
from edgetune.directions import native

VARIABLE = "EDGETUNE_KERNEL"
CHOICES = ("auto", "c", "torch")


def compiled_wanted() -> bool:
    """Read the environment: True if the compiled kernel shall be used where it can.

    Raises:
        ConfigError: if EDGETUNE_KERNEL is none of auto, c and torch, or is c and the kernel was not built.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        close = nearest(wanted, CHOICES)
        hint = f"did you mean {close!r}?" if close else f"one of {', '.join(CHOICES)}"
        raise ConfigError(f"no kernel {wanted!r}", where=VARIABLE, hint=hint)
    if wanted == "c" and native.library() is None:
        raise ConfigError(
            "the compiled kernel is not installed",
            where=VARIABLE,
            hint="install a C compiler and reinstall edgetune",
        )
    return wanted != "torch" and native.library() is not None


def describe_kernel() -> str:
    """Name the implementation in use, for `doctor` and the event log."""
    return f"c ({native.LEVELS[native.best_level()]})" if compiled_wanted() else "torch"
