"""Which implementations form perturbed tensors: Triton, C or the torch reference, equal bit for bit."""

from __future__ import annotations

import os

import torch

from edgetune.core.errors import ConfigError, MissingExtraError, nearest
from edgetune.directions import gpu, native
from edgetune.directions.few import few_rows

VARIABLE = "EDGETUNE_KERNEL"
COMPILED = {"c": None} | {f"c-{name}": level for level, name in enumerate(native.LEVELS)}
"""Names of the compiled kernel, and the instruction set that each asks for; the machine's best one if None."""
CHOICES = ("auto", *COMPILED, "torch", "triton")


def _choice() -> str:
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        close = nearest(wanted, CHOICES)
        hint = f"did you mean {close!r}?" if close else f"one of {', '.join(CHOICES)}"
        raise ConfigError(f"no kernel {wanted!r}", where=VARIABLE, hint=hint)
    return wanted


def compiled_level() -> int | None:
    """Read the environment: the compiled kernel's instruction set, an index of `native.LEVELS`; None if it is not used.

    Raises:
        ConfigError: if EDGETUNE_KERNEL is none of CHOICES, or asks for a kernel that was not built or a set that this
            machine lacks.
    """
    wanted = _choice()
    if wanted not in ("auto", *COMPILED):
        return None
    best = native.best_level()
    if native.library() is None:
        if wanted == "auto":
            return None
        raise ConfigError(
            "the compiled kernel is not installed",
            where=VARIABLE,
            hint="install a C compiler and reinstall edgetune",
        )
    level = COMPILED.get(wanted)
    if level is not None and level > best:
        raise ConfigError(
            f"this machine has no {native.LEVELS[level]}",
            where=VARIABLE,
            hint=f"c-{native.LEVELS[best]}, or c",
        )
    return best if level is None else level


def triton_wanted() -> bool:
    """Read the environment: True if the Triton kernels shall be used where they can.

    By themselves (auto) they serve CUDA tensors only; in Triton's interpreter, CPU tensors too, but only on demand.

    Raises:
        ConfigError: if EDGETUNE_KERNEL is none of CHOICES, or is triton on a machine that cannot.
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
    level = compiled_level()
    if level is not None:
        used.append(f"c ({native.LEVELS[level]}, products of up to {few_rows(level)} rows)")
    return ", ".join(used) or "torch"
