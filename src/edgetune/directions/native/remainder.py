"""Steps of 16-bit weights that keep the remainder of their rounding, in one pass over memory."""

from __future__ import annotations

import ctypes

import torch

from edgetune.core.errors import ModelError
from edgetune.core.remainder import narrow
from edgetune.directions.gaussian import Gaussian
from edgetune.directions.kind import Kind
from edgetune.directions.native.jobs import SMALL, TensorDirections, Terms, serves
from edgetune.directions.native.library import best_level, check, installed, team
from edgetune.directions.native.structs import Followed
from edgetune.directions.rademacher import Rademacher


def follows(kind: Kind, weight: torch.Tensor, base: torch.Tensor) -> bool:
    """Say whether `follow` can do this job: independent directions, CPU tensors that the kernel reads."""
    return isinstance(kind, Rademacher | Gaussian) and narrow(weight.dtype) and serves(kind, weight, base)


def follow(
    directions: TensorDirections,
    weight: torch.Tensor,
    remainder: torch.Tensor,
    terms: Terms,
    *,
    base: torch.Tensor | None = None,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    """Add directions to a 16-bit tensor and its remainders, one after the other.

        x <- held(x + c_i z_i),   x = what weight and remainder hold, or held(base)

    Args:
        directions: of this tensor, of Rademacher or Gaussian kind.
        weight: float16 or bfloat16, contiguous, on the CPU; written.
        remainder: int16, contiguous, like `weight` in shape; written.
        terms: the directions and coefficients, in this order.
        base: start from it instead, of any float type.
        level: instruction set, an index of LEVELS; the best one if not given.
        threads: at most this many; torch's number if not given.

    Raises:
        ModelError: if the arguments do not fit.
        RuntimeError: if the kernel is not installed.
    Cost: one pass over the tensor; a draw a direction.
    """
    fits = remainder.is_cpu and remainder.is_contiguous() and remainder.shape == weight.shape
    if not fits or remainder.dtype != torch.int16 or not follows(directions.kind, weight, weight):
        raise ModelError(
            "the compiled kernel cannot keep the remainders of this tensor", where=directions.name
        )
    task = directions.job(weight, weight if base is None else base)
    task.terms, task.seeds, task.coefficients = terms.count, terms.seeds_at, terms.coefficients_at
    if threads is None:
        threads = torch.get_num_threads() if weight.numel() >= SMALL else 1
    both = Followed(task, remainder.data_ptr(), int(base is None))
    level = best_level() if level is None else level
    check(installed().edgetune_follow(ctypes.byref(both), level, threads, team()), directions.name)
