"""The Triton kernels of rank one equal the torch reference bit for bit: in Triton's interpreter, and on CUDA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_gpu import devices, same
from test_native import DTYPES, KEY

from edgetune.core.update import Projected
from edgetune.directions import CachedSource, RankOne, RankOnePool, gpu
from edgetune.directions.kernel import VARIABLE
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.space import BoundSpace

KINDS: list[RankOneKind] = [RankOne(), *map(RankOnePool, (1, 6, 64, 5000))]
FEW = [(0,), (700,), (37, 53), (2, 3, 40)]
MANY = [(), (1,), (1, 1), (9000,), (600, 130), (513, 4096), (2048, 768)]
SOURCE = CachedSource(KEY)
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def shapes(device: str) -> list[tuple[int, ...]]:
    """What the interpreter gets is less: it is slow."""
    return FEW if device == "cpu" else FEW + MANY


def weights(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def some(kind: RankOneKind, count: int) -> Projected:
    keys = np.arange(count, dtype=np.int64) * 7919 % (kind.size if isinstance(kind, RankOnePool) else 2**40)
    return Projected(keys, np.random.Generator(np.random.Philox(1)).normal(size=count).astype(np.float32))


@devices
@kinds
@pytest.mark.parametrize("count", [0, 3])
def test_replays_have_equal_bits(kind: RankOneKind, count: int, device: str) -> None:
    update = some(kind, count)
    pairs = list(zip(update.keys.tolist(), update.coefficients.tolist(), strict=True))
    for shape in shapes(device):
        for dtype in DTYPES if device != "cpu" or len(shape) == 2 else DTYPES[:1]:
            base = weights(shape, dtype)
            expected, got = torch.empty_like(base), torch.full(shape, 7.0, dtype=dtype, device=device)
            kind.replay(expected, base, pairs, SOURCE, "w")
            gpu.run(kind, KEY, "w", got, base.to(device), update, replay=True)
            assert same(got, expected), (shape, dtype)


@devices
@kinds
def test_steps_have_equal_bits(kind: RankOneKind, device: str) -> None:
    seed = kind.size - 1 if isinstance(kind, RankOnePool) else 2**63 - 5
    for shape in shapes(device):
        for coefficient in (0.37, 0.0):
            base = weights(shape, torch.float32)
            base.view(-1)[::3] = -0.0
            expected, got = torch.empty_like(base), base.to(device)
            kind.axpy(expected, base, coefficient, SOURCE, "w", seed)
            gpu.run(kind, KEY, "w", got, got, Projected.of(seed, coefficient), replay=False)
            assert same(got, expected), (shape, coefficient)


@devices
@kinds
def test_a_space_goes_through_the_kernels(
    kind: RankOneKind, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, update = weights((20, 30), torch.float16), some(kind, 2)
    expected, got = torch.empty_like(base), base.to(device)
    plain = BoundSpace(kind, KEY)
    plain.replay(expected, base, update, "w")
    plain.axpy(expected, expected, 0.25, "w", 0)
    monkeypatch.setenv(VARIABLE, "triton")
    space = BoundSpace(kind, KEY)
    for name in ("axpy", "replay"):  # the reference must not be asked
        monkeypatch.setattr(type(kind), name, None)
    space.replay(got, got, update, "w")
    space.axpy(got, got, 0.25, "w", 0)
    assert same(got, expected)


@devices
@pytest.mark.parametrize("kind", [RankOne(), RankOnePool(64)], ids=str)
def test_narrow_weights_and_their_remainders_follow_steps(
    kind: RankOneKind, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, update = weights((20, 30), torch.bfloat16), some(kind, 2)
    expected = base.clone(), torch.zeros(20, 30, dtype=torch.int16)
    found = base.to(device), torch.zeros(20, 30, dtype=torch.int16, device=device)
    BoundSpace(kind, KEY).follow(*expected, update, "w")
    monkeypatch.setenv(VARIABLE, "triton")
    BoundSpace(kind, KEY).follow(*found, update, "w")
    assert same(found[0], expected[0])
    assert torch.equal(found[1].cpu(), expected[1])
