"""Which implementations form perturbed tensors: Triton, C or the torch reference, equal bit for bit."""

from __future__ import annotations

import os

import torch

from edgetune.core.errors import ConfigError, MissingExtraError, nearest
from edgetune.directions import gpu, native

VARIABLE = "EDGETUNE_KERNEL"
CHOICES = ("auto", "c", "torch", "triton")


def _choice() -> str:
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        close = nearest(wanted, CHOICES)
        hint = f"did you mean {close!r}?" if close else f"one of {', '.join(CHOICES)}"
        raise ConfigError(f"no kernel {wanted!r}", where=VARIABLE, hint=hint)
    return wanted


def compiled_wanted() -> bool:
    """Read the environment: True if the compiled kernel shall be used where it can.

    Raises:
        ConfigError: if EDGETUNE_KERNEL is none of auto, c, torch and triton, or is c and the kernel was not built.
    """
    wanted = _choice()
    if wanted == "c" and native.library() is None:
        raise ConfigError(
            "the compiled kernel is not installed",
            where=VARIABLE,
            hint="install a C compiler and reinstall edgetune",
        )
    return wanted in ("auto", "c") and native.library() is not None


def triton_wanted() -> bool:
    """Read the environment: True if the Triton kernels shall be used where they can.

    By themselves (auto) they serve CUDA tensors only; in Triton's interpreter, CPU tensors too, but only on demand.

    Raises:
        ConfigError: if EDGETUNE_KERNEL is none of auto, c, torch and triton, or is triton on a machine that cannot.
        MissingExtraError: if it is triton and Triton is not installed.
    """
    wanted = _choice()
    if wanted != "triton":
        return wanted == "auto" and torch.cuda.is_available() and gpu.loaded() is not None
    if gpu.loaded() is None:
        raise MissingExtraError("triton", "gpu", f"{VARIABLE}=triton")
    if not torch.cuda.is_available() and not gpu.interpreted():
        raise ConfigError(
            "the Triton kernels need a CUDA device",
            where=VARIABLE,
            hint="or TRITON_INTERPRET=1, which runs them on the CPU, slowly",
        )
    return True


def describe_kernel() -> str:
    """Name the implementations in use, for `doctor` and the event log."""
    used = []
    if triton_wanted():
        used.append("triton (interpreter)" if gpu.interpreted() else "triton (CUDA tensors)")
    if compiled_wanted():
        used.append(f"c ({native.LEVELS[native.best_level()]})")
    return ", ".join(used) or "torch"
