"""Rows folded onto a tile and tiles spread over rows: what a pool of rank one costs a product beside its weights."""

from __future__ import annotations

import ctypes

import torch

from edgetune.directions.kernel import compiled_level
from edgetune.directions.native.jobs import SMALL
from edgetune.directions.native.library import check, installed, team
from edgetune.directions.native.structs import Apart, Tiling


def fold(
    x: torch.Tensor, e: torch.Tensor, wide: int, *, level: int | None = None, threads: int | None = None
) -> torch.Tensor:
    """Sum signed columns that are a tile apart.

        f[t, q] = sum_(j mod Q = q) x[t, j] e[j]

    Args:
        x: [..., n], of any float type.
        e: float32 [n] of +1 and -1.
        wide: Q, at least 1.
        level: instruction set, an index of `native.LEVELS`; what EDGETUNE_KERNEL says if not given.
        threads: at most this many; torch's number if not given.

    Returns:
        [..., Q], of the wider type of `x` and float32.
    Cost: one pass over `x` where the kernel was built, for contiguous float32 on the CPU that wants no gradient; else a
        copy of `x`.
    """
    level = _level(level, wide, x, e)
    if level is not None:
        f = x.new_empty(*x.shape[:-1], wide)
        _tile(x, f, e, False, level, threads)
        return f
    signed, times = x * e, x.shape[-1] // wide
    summed: torch.Tensor = signed[..., : times * wide].view(*x.shape[:-1], times, wide).sum(-2)
    summed[..., : x.shape[-1] - times * wide] += signed[..., times * wide :]
    return summed


def unfold(
    y: torch.Tensor,
    g: torch.Tensor,
    d: torch.Tensor,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    """Add a signed tile to columns, in place.

        y[t, i] <- y[t, i] + d[i] g[t, i mod P]

    Args:
        y: [..., m], of any float type; written.
        g: [..., P], P at least 1; leading dimensions like those of `y`.
        d: float32 [m] of +1 and -1.
        level: instruction set, an index of `native.LEVELS`; what EDGETUNE_KERNEL says if not given.
        threads: at most this many; torch's number if not given.

    Cost: one pass over `y`.
    """
    tall = g.shape[-1]
    level = _level(level, tall, y, g, d)
    if level is not None:
        _tile(y, g, d, True, level, threads)
        return
    g, d, times = g.to(y.dtype), d.to(y.dtype), y.shape[-1] // tall
    whole = times * tall
    y[..., :whole].view(*y.shape[:-1], times, tall).addcmul_(g.unsqueeze(-2), d[:whole].view(times, tall))
    y[..., whole:].addcmul_(g[..., : y.shape[-1] - whole], d[whole:])


def add_apart(
    y: torch.Tensor,
    x: torch.Tensor,
    v: torch.Tensor,
    u: torch.Tensor,
    s: torch.Tensor,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    """Add to every record's product its own direction of rank one, in place.

        y[r, t] <- y[r, t] + s[r, t] (x[r, t] . v[r]) u[r]

    Args:
        y: [records, tokens, m], of any float type; written.
        x: [records, tokens, n].
        v: [records, n] of +1 and -1.
        u: [records, m] of +1 and -1.
        s: [records, tokens] or [records, 1].
        level: instruction set, an index of `native.LEVELS`; what EDGETUNE_KERNEL says if not given.
        threads: at most this many; torch's number if not given.

    Cost: one pass over `x` and one over `y`.
    """
    s = s.expand(x.shape[:2]).contiguous()
    level = _level(level, 1, y, x, v, u, s)
    if level is None:
        y.add_((torch.bmm(x, v.unsqueeze(2).to(x.dtype)) * s.unsqueeze(2)) * u.unsqueeze(1))
        return
    (records, tokens, depth), outs = x.shape, y.shape[2]
    if y.shape[:2] != x.shape[:2] or v.shape != (records, depth) or u.shape != (records, outs):
        raise ValueError(
            f"{tuple(u.shape)} and {tuple(v.shape)} do not fit {tuple(y.shape)} and {tuple(x.shape)}"
        )
    if not min(depth, outs, records * tokens):
        return
    if threads is None:
        threads = torch.get_num_threads() if max(x.numel(), y.numel()) >= SMALL else 1
    at = (one.data_ptr() for one in (y, x, v, u, s))
    task = Apart(*at, records * tokens, depth, outs, tokens)
    check(installed().edgetune_apart(ctypes.byref(task), level, threads, team()), "add_apart")


def _level(level: int | None, wide: int, *tensors: torch.Tensor) -> int | None:
    """Return the instruction set to compute with, None for torch."""
    for one in tensors:
        if one.dtype != torch.float32 or not one.is_cpu or not one.is_contiguous() or one.requires_grad:
            return None
    if wide & (wide - 1):
        return None
    return compiled_level() if level is None else level


def _tile(
    x: torch.Tensor, tiles: torch.Tensor, signs: torch.Tensor, spreads: bool, level: int, threads: int | None
) -> None:
    columns, wide = x.shape[-1], tiles.shape[-1]
    rows = tiles.numel() // wide
    if signs.shape != (columns,) or tiles.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"{tuple(tiles.shape)} and {tuple(signs.shape)} do not fit {tuple(x.shape)}")
    if threads is None:
        threads = torch.get_num_threads() if x.numel() >= SMALL else 1
    task = Tiling(x.data_ptr(), tiles.data_ptr(), signs.data_ptr(), rows, columns, wide)
    status = installed().edgetune_tile(ctypes.byref(task), int(spreads), level, threads, team())
    check(status, "fold" if not spreads else "unfold")
