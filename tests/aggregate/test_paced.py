"""Variance-controlled pacing: the variance against brute force, and steps that wait until it is low."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edgetune.aggregate import Paced
from edgetune.aggregate.paced import variance_of_mean
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.update import Contribution, Projected
from edgetune.directions import Gaussian, Rademacher, Source

NONE = Projected.none()


def told(device: int, first: int, slopes: list[float]) -> Contribution:
    keys = np.arange(first, first + len(slopes))
    return Contribution(device, 5, 1.0, 0, Projected(keys, np.array(slopes, np.float32)))


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian()])
def test_the_variance_is_that_of_the_two_halves_element_by_element(kind: Rademacher | Gaussian) -> None:
    slopes = np.random.default_rng(0).normal(0, 3, 21).astype(np.float32)
    source, size = Source(pool_key(0)), 200_000
    forward = torch.stack(
        [
            g * kind.values(source, "w", key, 0, size, torch.device("cpu")).double()
            for key, g in enumerate(slopes.tolist())
        ]
    )
    means = torch.stack([forward[::2].mean(dim=0), forward[1::2].mean(dim=0)])
    brute = float(means.var(dim=0, correction=0).mean())
    assert variance_of_mean(slopes) == pytest.approx(brute, rel=0.02)


def test_the_variance_falls_as_one_over_the_number_of_slopes() -> None:
    slopes = np.ones(4096, np.float32)
    found = [variance_of_mean(slopes[:count]) for count in (64, 256, 1024, 4096)]
    assert [before / after for before, after in itertools.pairwise(found)] == pytest.approx([4, 4, 4])


def test_no_step_is_taken_above_the_threshold_and_the_step_is_the_mean_of_all() -> None:
    rule = Paced(lr=0.5, threshold=0.7)
    memory = rule.start(NONE)
    assert rule.combine([told(1, 10, [2.0, -2.0]), told(0, 0, [2.0])], NONE, memory) is None
    assert int(memory["gathered"]) == 3
    step = rule.combine([told(2, 20, [2.0] * 4)], NONE, memory)
    assert variance_of_mean(np.array([2.0] * 7, np.float32)) <= 0.7
    assert step.keys.tolist() == [0, 10, 11, 20, 21, 22, 23]
    assert step.coefficients.tolist() == pytest.approx([-0.5 / 7 * g for g in (2, 2, -2, 2, 2, 2, 2)])
    assert int(memory["gathered"]) == 0


def test_a_cap_ends_the_waiting() -> None:
    rule = Paced(lr=1.0, threshold=1e-9, most=4)
    memory = rule.start(NONE)
    assert rule.combine([told(0, 0, [1.0] * 3)], NONE, memory) is None
    assert len(rule.combine([told(0, 3, [1.0] * 3)], NONE, memory).keys) == 4


def test_an_infinite_threshold_is_a_plain_mean_every_round() -> None:
    rule = Paced(lr=2.0, threshold=float("inf"))
    step = rule.combine([told(0, 0, [1.0, 3.0])], NONE, rule.start(NONE))
    assert step.coefficients.tolist() == [-1.0, -3.0]


def test_a_threshold_that_is_found_is_half_of_what_the_first_round_varied() -> None:
    rule = Paced(lr=1.0, threshold=0.0)
    memory = rule.start(NONE)
    assert rule.combine([told(0, 0, [30.0] * 4)], NONE, memory) is None
    assert float(memory["threshold"]) == variance_of_mean(np.full(4, 30, np.float32)) / 2
    assert len(rule.combine([told(0, 4, [30.0] * 4)], NONE, memory).keys) == 8
    assert len(rule.combine([told(0, 8, [15.0] * 4)], NONE, memory).keys) == 4


def test_the_steepest_slopes_point_more_along_the_gradient_than_all() -> None:
    random = np.random.default_rng(0)
    gradient, found = random.normal(size=200), []
    directions = random.normal(size=(400, 200))
    slopes = (directions @ gradient).astype(np.float32)
    for share in (1.0, 0.1):
        rule = Paced(lr=1.0, threshold=float("inf"), keep=share)
        step = rule.combine([told(0, 0, slopes.tolist())], NONE, rule.start(NONE))
        kept = sorted(np.argsort(-np.abs(slopes))[: int(400 * share)].tolist())
        assert step.keys.tolist() == kept
        assert step.coefficients.tolist() == pytest.approx((-slopes[kept] / len(kept)).tolist())
        cosines = np.abs(slopes[kept]) / np.linalg.norm(directions[kept], axis=1) / np.linalg.norm(gradient)
        found.append(float(cosines.mean()))
    assert found[1] > 1.8 * found[0]


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_slopes_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="keeps a share"):
        Paced(lr=1.0, threshold=1.0, keep=share)


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"threshold": -1.0}, {"most": 1}, {"most": 1 << 17}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="pacing needs"):
        Paced(**{"lr": 1.0, "threshold": 1.0} | wrong)
