"""Discriminative sampling: cosines against brute force, what is kept, and what it gains and costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from edgetune.aggregate import Paced
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.part import misfit
from edgetune.core.update import Projected, Stepped
from edgetune.directions import Gaussian, Rademacher, Source
from edgetune.directions.cosine import cosines
from edgetune.directions.discriminative import Discriminative
from edgetune.directions.draw import Fresh
from edgetune.directions.space import BoundSpace

KEY = pool_key(3)
SHAPES = {"a.lora_A": (4, 30), "a.lora_B": (20, 4), "bias": (7,)}
WEIGHTS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SIZE = sum(one.numel() for one in WEIGHTS.values())


def whole(kind: Gaussian | Rademacher, key: int, weights: dict[str, torch.Tensor] = WEIGHTS) -> Any:
    """Return one direction over all tensors, by the torch reference."""
    parts = [
        kind.values(Source(KEY), name, key, 0, one.numel(), torch.device("cpu")).double().numpy()
        for name, one in weights.items()
    ]
    return np.concatenate(parts)


def summed(kind: Gaussian | Rademacher, update: Projected) -> Any:
    terms = zip(update.keys.tolist(), update.coefficients.tolist(), strict=True)
    return sum(c * whole(kind, key) for key, c in terms)


def brute(kind: Gaussian | Rademacher, keys: list[int], update: Projected) -> Any:
    goal = summed(kind, update)
    return np.array(
        [z @ goal / np.linalg.norm(z) / np.linalg.norm(goal) for z in (whole(kind, key) for key in keys)]
    )


def step_of(count: int, seed: int = 0) -> Projected:
    numbers = np.random.default_rng(seed).normal(0, 1e-3, count).astype(np.float32)
    return Projected(np.arange(10_000, 10_000 + count), numbers)


def stepped(step: Projected, before: int = 5) -> Stepped:
    state = Projected(np.arange(before), np.ones(before, np.float32)) + step
    return Stepped(state.keys, state.coefficients, len(step.keys))


@pytest.mark.parametrize("kind", [Gaussian(), Rademacher()])
def test_cosines_are_of_whole_directions(kind: Gaussian | Rademacher) -> None:
    step, keys = step_of(9), list(range(50, 90))
    found = cosines(BoundSpace(kind, KEY), WEIGHTS.items(), keys, step)
    assert found == pytest.approx(brute(kind, keys, step), abs=1e-6)
    assert cosines(BoundSpace(kind, KEY), WEIGHTS.items(), [50], Projected.none()).tolist() == [0.0]
    own = cosines(BoundSpace(kind, KEY), WEIGHTS.items(), [10_000], Projected.of(10_000, -2.0))
    assert own == pytest.approx([-1.0])


@pytest.mark.parametrize("total", [40, 1500])
def test_all_candidates_are_ranked_however_many_there_are(total: int) -> None:
    kind, step, keys = Gaussian(), step_of(9), list(range(50, 50 + total))
    choose = Discriminative(kind).choose
    kept = choose(BoundSpace(kind, KEY), WEIGHTS.items(), keys, total // 10, stepped(step))
    sizes = np.abs(brute(kind, keys, step))
    assert kept == sorted(keys[index] for index in np.argsort(-sizes)[: total // 10])
    if total > 1000:  # more than the block that the official code returned alone
        assert min(kept) < 1050 <= max(kept)


def test_opposite_directions_count_alike() -> None:
    kind, step, keys = Gaussian(), step_of(9), list(range(50, 250))
    choose = Discriminative(kind).choose
    one, other = (
        choose(BoundSpace(kind, KEY), WEIGHTS.items(), keys, 20, stepped(each))
        for each in (step, step.scaled(-1))
    )
    assert one == other
    signs = np.sign(brute(kind, one, step))
    assert {-1.0, 1.0} == set(signs)


def test_before_the_first_step_and_with_one_candidate_they_are_plain() -> None:
    kind, space = Gaussian(), BoundSpace(Gaussian(), KEY)
    plain = Fresh(kind).draw(1, 2, 3, 4, 2)
    offered = Discriminative(kind).draw(1, 2, 3, 40, 2)
    assert offered[:8] == plain
    for state in (None, Projected.none(), step_of(4)):
        assert Discriminative(kind).choose(space, WEIGHTS.items(), offered, 8, state) == plain
    assert (
        Discriminative(kind, candidates=1).choose(space, WEIGHTS.items(), plain, 8, stepped(step_of(4)))
        == plain
    )


def test_the_kept_point_more_along_the_true_gradient() -> None:
    """A quadratic whose gradient is known: the last step follows from slopes at one point, the gradient at the next."""
    kind, space, generator = Gaussian(), BoundSpace(Gaussian(), KEY), np.random.default_rng(4)
    curvature, w = generator.uniform(0.5, 2.0, SIZE), generator.normal(0, 1, SIZE)
    gradient = curvature * w
    earlier = np.arange(10_000, 10_256)
    slopes = np.array([gradient @ whole(kind, key) for key in earlier.tolist()])
    step = Projected(earlier, (-0.1 / 256 * slopes).astype(np.float32))
    now = curvature * (w + summed(kind, step))
    assert abs(now @ gradient) < np.linalg.norm(now) * np.linalg.norm(gradient)
    means = {}
    for candidates in (1, 2, 10):
        count = 200
        offered = list(range(50, 50 + count * candidates))
        kept = Discriminative(kind, candidates=candidates).choose(
            space, WEIGHTS.items(), offered, count, stepped(step)
        )
        along = [abs(whole(kind, key) @ now) / np.linalg.norm(whole(kind, key)) for key in kept]
        means[candidates] = float(np.mean(along) / np.linalg.norm(now))
    print("mean |cos| to the true gradient by candidates:", {k: round(v, 4) for k, v in means.items()})
    assert means[1] < means[2] < means[10]
    assert means[10] > 1.5 * means[1]


def test_the_estimate_is_too_long_along_the_last_step_by_the_stated_factor() -> None:
    """E[x^2 | |x| > t] of the normal distribution is what the part along g is multiplied by; the rest is as it was."""
    kind, space = Gaussian(), BoundSpace(Gaussian(), KEY)
    step, keys = step_of(9), list(range(50, 6_050))
    goal = summed(kind, step)
    goal /= np.linalg.norm(goal)
    kept = Discriminative(kind).choose(space, WEIGHTS.items(), keys, 600, stepped(step))
    z = np.stack([whole(kind, key) for key in kept])
    along = z @ goal
    threshold = stats.norm.ppf(0.95)
    factor = 1 + threshold * stats.norm.pdf(threshold) / 0.05
    assert factor == pytest.approx(4.4, abs=0.02)
    assert np.mean(along**2) == pytest.approx(factor, rel=0.05)
    rest = z - along[:, None] * goal
    assert np.mean(rest**2) * SIZE / (SIZE - 1) == pytest.approx(1.0, rel=0.02)


def test_impossible_numbers_of_candidates_and_servers_without_a_last_step_are_refused() -> None:
    for wrong in (0, 1001):
        with pytest.raises(ConfigError, match="1 to 1,000 candidates"):
            Discriminative(Gaussian(), candidates=wrong)
    said = misfit({"directions": Discriminative(Gaussian()), "aggregate": Paced(1.0, 1.0)})
    assert said is not None
    assert "last step" in said or "slopes" in said
