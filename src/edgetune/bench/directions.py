"""How fast directions are drawn and ledgers replayed, beside one addition and beside the published loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from edgetune.bench.reference import draw_and_add, rebuild
from edgetune.bench.timing import Ratio, compare, take_turns, waiting
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Hadamard, Rademacher, RankOne, RankOnePool
from edgetune.directions.space import BoundSpace

NAME, SAMPLED = "weights", 2
"""Tensor name, and how many seeds of a per-seed loop are really run before its time is scaled."""
COLUMNS = 2048
"""Most columns of the matrix that directions of rank one are added to: the same weights."""


def bench_directions(
    weights: int = 1 << 24, rounds: int = 7, pool: int = 4096, device: str = "cpu"
) -> Iterator[Ratio]:
    """Yield the ratios, one at a time as they are measured.

    Args:
        weights: elements of the float32 tensor.
        rounds: turns of every side.
        pool: K of the replays.
        device: where the tensor lies; a GPU's work is waited for before the clock is read.
    """
    key = pool_key(0)
    w = torch.randn(weights, generator=torch.Generator().manual_seed(0)).to(device) * 0.02
    out = torch.empty_like(w)
    spaces = {kind.name: BoundSpace(kind, key) for kind in (Rademacher(), Gaussian(), Hadamard(pool))}
    seconds = take_turns(
        {
            "add_ of a scalar": lambda: w.add_(1e-9),
            "axpy rademacher": lambda: spaces["rademacher"].axpy(w, w, 1e-9, NAME, 3),
            "axpy hadamard": lambda: spaces["hadamard"].axpy(w, w, 1e-9, NAME, 3),
            "axpy gaussian": lambda: spaces["gaussian"].axpy(w, w, 1e-9, NAME, 3),
            "torch.normal and add": lambda: draw_and_add([w], 3, 1e-9),
        },
        rounds,
        waiting(w.device),
    )
    yield compare(seconds, "axpy rademacher", "add_ of a scalar")
    yield compare(seconds, "axpy hadamard", "add_ of a scalar")
    yield compare(seconds, "axpy gaussian", "add_ of a scalar")
    yield compare(seconds, "torch.normal and add", "axpy rademacher")
    yield compare(seconds, "torch.normal and add", "axpy gaussian")
    yield from _replays(w, out, key, pool, rounds)
    columns = math.gcd(len(w), COLUMNS)
    yield from _rank_one(w.view(-1, columns), out.view(-1, columns), key, pool, rounds)


def _rank_one(w: torch.Tensor, out: torch.Tensor, key: bytes, pool: int, rounds: int) -> Iterator[Ratio]:
    summed, fresh = BoundSpace(RankOnePool(pool), key), BoundSpace(RankOne(), key)
    every, few, other = _terms(pool), _terms(64), out * 0 + 1e-9
    add, part = "add_ of a tensor", slice(0, -(-len(w) // 16))
    seconds = take_turns(
        {
            add: lambda: w.add_(other),
            "axpy rank_one": lambda: fresh.axpy(w, w, 1e-9, NAME, 3),
            "axpy rank_one_pool": lambda: summed.axpy(w, w, 1e-9, NAME, 3),
            f"replay rank_one_pool K={pool}": _replay(summed, out, w, every),
            f"replay rank_one_pool K={pool}, in place": _replay(summed, w, w, every),
            "replay rank_one K=64, 1/16 of the weights": _replay(fresh, out[part], w[part], few),
        },
        rounds,
        waiting(w.device),
    )
    for side in list(seconds):
        if side != add:
            yield compare(seconds, side, add)


def _terms(count: int) -> Projected:
    return Projected(np.arange(count), np.arange(1, count + 1, dtype=np.float32) * np.float32(1e-6))


def _replays(w: torch.Tensor, out: torch.Tensor, key: bytes, pool: int, rounds: int) -> Iterator[Ratio]:
    sizes = sorted({256, 1024, pool, 16384})
    spaces = {size: BoundSpace(Hadamard(size), key) for size in sizes}
    independent = BoundSpace(Rademacher(), key)
    few = min(pool, 64)
    part, part_out = w[: len(w) // 16], out[: len(w) // 16]
    sides: dict[str, Callable[[], object]] = {"add_ of a scalar": lambda: w.add_(1e-9)}
    for size in sizes:
        sides[f"replay hadamard K={size}"] = _replay(spaces[size], out, w, _terms(size))
    sides[f"replay rademacher K={few}, 1/16 of the weights"] = _replay(
        independent, part_out, part, _terms(few)
    )
    sides[f"per-seed loop, {SAMPLED} seeds"] = lambda: rebuild([w], [(seed, 1e-9) for seed in range(SAMPLED)])
    seconds = take_turns(sides, rounds, waiting(w.device))
    for size in sizes:
        yield compare(seconds, f"replay hadamard K={size}", "add_ of a scalar")
    loop = f"per-seed loop, {SAMPLED} seeds"
    yield compare(
        seconds, loop, f"replay hadamard K={pool}", scale=pool / SAMPLED,
        note=f"the loop's time for K={pool} is scaled from {SAMPLED} seeds",
    )  # fmt: skip
    yield compare(
        seconds, loop, f"replay rademacher K={few}, 1/16 of the weights", scale=few / SAMPLED / 16,
        note=f"both scaled to K={few} on 1/16 of the weights",
    )  # fmt: skip


def _replay(
    space: BoundSpace, out: torch.Tensor, base: torch.Tensor, update: Projected
) -> Callable[[], object]:
    return lambda: space.replay(out, base, update, NAME)
