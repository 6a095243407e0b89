"""Steps of 16-bit weights that keep the remainder of their rounding, in one pass over memory."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from edgetune.core.remainder import narrow
from edgetune.core.update import Projected
from edgetune.directions.gaussian import Gaussian
from edgetune.directions.kind import Kind
from edgetune.directions.native import SMALL, Job, best_level, job, library, serves, team
from edgetune.directions.rademacher import Rademacher


class _Followed(ctypes.Structure):
    """Mirror of `followed` in kernel.c."""

    _fields_ = (("task", Job), ("remainder", ctypes.c_void_p), ("joins", ctypes.c_int32))


@cache
def _kernel() -> ctypes.CDLL | None:
    """Return the compiled kernel if it follows steps of this layout."""
    found = library()
    if found is None or not hasattr(found, "edgetune_followed_size"):
        return None
    found.edgetune_followed_size.restype = ctypes.c_int64
    return found if found.edgetune_followed_size() == ctypes.sizeof(_Followed) else None


def follows(kind: Kind, weight: torch.Tensor, base: torch.Tensor) -> bool:
    """Say whether `follow` can do this job: independent directions, CPU tensors that the kernel reads."""
    signs = isinstance(kind, Rademacher | Gaussian)
    return _kernel() is not None and signs and narrow(weight.dtype) and serves(kind, weight, base)


def follow(
    kind: Kind,
    key: bytes,
    name: str,
    weight: torch.Tensor,
    remainder: torch.Tensor,
    update: Projected,
    *,
    base: torch.Tensor | None = None,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    """Add directions to a 16-bit tensor and its remainders, one after the other.

        x <- held(x + c_i z_i),   x = what weight and remainder hold, or held(base)

    Args:
        kind: Rademacher or Gaussian.
        key: 32 bytes.
        name: the parameter's name.
        weight: float16 or bfloat16, contiguous, on the CPU; written.
        remainder: int16, contiguous, like `weight` in shape; written.
        update: the directions and coefficients, in this order.
        base: start from it instead, of any float type.
        level: instruction set, an index of LEVELS; the best one if not given.
        threads: at most this many; torch's number if not given.

    Raises:
        RuntimeError: if the kernel refuses the arguments.
    Cost: one pass over the tensor; a draw a direction.
    """
    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("the compiled kernel is not installed")
    task, kept = job(kind, key, name, weight, weight if base is None else base, update)
    if threads is None:
        threads = torch.get_num_threads() if weight.numel() >= SMALL else 1
    status = kernel.edgetune_follow(
        ctypes.byref(_Followed(task, remainder.data_ptr(), int(base is None))),
        best_level() if level is None else level,
        threads,
        team(),
    )
    del kept
    if status:
        raise RuntimeError(f"the compiled kernel refused to follow the step (status {status})")
