"""Federated averaging, on both kinds of update."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch

from edgetune.aggregate import Mean
from edgetune.core.errors import ConfigError
from edgetune.core.update import Contribution, Dense, Projected

NONE = Projected.none()
EXAMPLES = [10, 1, 5]
rules = pytest.mark.parametrize(
    ("rule", "shares"), [(Mean(), [10 / 16, 1 / 16, 5 / 16]), (Mean(by_examples=False), [1 / 3] * 3)]
)


def projected() -> list[Contribution]:
    keys = [[4, 1], [1], [9, 4, 4]]
    return [
        Contribution(
            d, EXAMPLES[d], 1.0, 0, Projected(np.array(k), np.arange(1, len(k) + 1, dtype=np.float32))
        )
        for d, k in enumerate(keys)
    ]


def dense() -> list[Contribution]:
    generator = torch.Generator().manual_seed(0)
    return [
        Contribution(d, EXAMPLES[d], 1.0, 0, Dense({"a": torch.randn(2, 3, generator=generator)}))
        for d in range(3)
    ]


@rules
def test_the_mean_of_projected_updates_is_the_weighted_sum(rule: Mean, shares: list[float]) -> None:
    expected: dict[int, float] = defaultdict(float)
    for share, one in zip(shares, projected(), strict=True):
        for key, value in zip(one.update.keys.tolist(), one.update.coefficients.tolist(), strict=True):
            expected[key] += share * value
    mean = rule.combine(projected(), NONE, {})
    assert dict(zip(mean.keys.tolist(), mean.coefficients.tolist(), strict=True)) == pytest.approx(expected)


@rules
def test_the_mean_of_dense_updates_is_the_weighted_sum(rule: Mean, shares: list[float]) -> None:
    expected = sum(
        share * one.update.tensors["a"].double() for share, one in zip(shares, dense(), strict=True)
    )
    assert torch.allclose(rule.combine(dense(), NONE, {}).tensors["a"].double(), expected, atol=1e-6)


def test_the_order_of_arrival_changes_no_bit() -> None:
    for order in itertools.permutations(range(3)):
        sparse, full = projected(), dense()
        mean = Mean().combine([sparse[d] for d in order], NONE, {})
        assert mean.keys.tolist() == Mean().combine(sparse, NONE, {}).keys.tolist()
        assert mean.coefficients.tobytes() == Mean().combine(sparse, NONE, {}).coefficients.tobytes()
        assert torch.equal(
            Mean().combine([full[d] for d in order], NONE, {}).tensors["a"],
            Mean().combine(full, NONE, {}).tensors["a"],
        )


def test_one_device_is_its_own_mean() -> None:
    assert torch.equal(Mean().combine(dense()[:1], NONE, {}).tensors["a"], dense()[0].update.tensors["a"])


def test_mixed_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="together"):
        Mean().combine([projected()[0], dense()[1]], NONE, {})


def test_nothing_gives_nothing() -> None:
    assert Mean().combine([], NONE, {}) is None
