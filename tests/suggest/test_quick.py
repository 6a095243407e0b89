"""The quick test: on losses with known slopes and curvature, on records with a known spread, on flat ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.errors import DivergenceError
from edgetune.core.keys import pool_key, stream
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.suggest.lines import Lines, Look, RecordLosses
from edgetune.suggest.preparing import scale_of
from edgetune.suggest.quick import SIZES, Ahead, find_settings
from edgetune.tune import ProjectedTuned

SIZE, CURVATURE, RECORDS = 2000, 0.01, 64
KEYS = range(100, 140)


class Point(nn.Module):
    """One vector; its forward returns it, so that perturbations are seen."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
        self.at = nn.Parameter(start, requires_grad=False)

    def forward(self) -> torch.Tensor:
        return self.at


def batch(index: int, records: int) -> Batch:
    rows = torch.from_numpy(stream(0, "rows", index).permutation(RECORDS)[:records])[:, None]
    return Batch(rows, torch.ones_like(rows), rows)


def bowl(spread: float = 0.0) -> RecordLosses:
    """Return h |w|^2 / 2, tilted for every record by a random line of its own."""
    tilt = spread * torch.randn(RECORDS, SIZE, generator=torch.Generator().manual_seed(1)).double()

    def losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        at = model().double()
        found = CURVATURE / 2 * (at**2).sum() + tilt[batch.input_ids[:, 0]] @ at
        return found, torch.ones(len(found))

    return losses


def lines_of(losses: RecordLosses) -> Lines:
    return Lines(ProjectedTuned(Point(), BoundSpace(Rademacher(), pool_key(0))), losses, batch, KEYS)


def ahead(records: int = 5000, steps: int = 1, batch_size: int = 1, directions: int = 1) -> Ahead:
    return Ahead(batch_size, directions, steps, records)


def test_on_a_bowl_the_rate_is_half_of_one_over_the_trace() -> None:
    found = find_settings(lines_of(bowl()), ahead(), 1e-3)
    best = 1 / (SIZE * CURVATURE)
    assert best / 8 <= found.learning_rate <= 0.55 * best
    assert found.clear


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.8])
def test_from_any_radius_it_comes_to_one_that_is_clear_and_straight(start: float) -> None:
    lines = lines_of(bowl())
    found = find_settings(lines, ahead(), start)
    assert found.eps is not None
    seen = [lines.look(line, 8, (found.eps, 0.0, -found.eps)).losses for line in range(16)]
    bend = np.mean([abs(above + below - 2 * here) for above, here, below in seen])
    difference = np.mean([abs(above - below) for above, _, below in seen])
    assert bend < 0.4 * difference
    assert difference > 10 * 2**-24 * seen[0][1]


def test_the_slope_of_a_batch_varies_as_one_batch_says() -> None:
    lines = lines_of(bowl(0.02))
    many = [lines.look(0, RECORDS, (1e-2, -1e-2))]
    each = (many[0].sums[0] - many[0].sums[1]) / 2e-2
    slope, spread = many[0].slope(0, 1, 2e-2)
    assert slope == pytest.approx(each.mean())
    draws = stream(0, "batches").integers(0, RECORDS, (20_000, 4))
    assert spread / 4 == pytest.approx(float(np.var(each[draws].mean(axis=1))), rel=0.05)


def test_records_of_many_tokens_weigh_more() -> None:
    look = Look(np.array([[3.0, 8.0], [1.0, 0.0]]), np.array([1.0, 4.0]))
    slope, _ = look.slope(0, 1, 1.0)
    assert slope == pytest.approx((2 + 8) / 5)
    assert look.losses == pytest.approx([11 / 5, 1 / 5])


def test_records_that_disagree_lower_the_rate_and_a_larger_batch_raises_it() -> None:
    alike, apart = (find_settings(lines_of(bowl(spread)), ahead(), 1e-3) for spread in (0.0, 0.1))
    large = find_settings(lines_of(bowl(0.1)), ahead(batch_size=64), 1e-3)
    assert apart.learning_rate < alike.learning_rate / 2
    assert large.learning_rate > 2 * apart.learning_rate


def test_a_longer_run_gets_a_lower_rate() -> None:
    short, long = (find_settings(lines_of(bowl(0.1)), ahead(steps=steps), 1e-3) for steps in (200, 200_000))
    assert long.learning_rate < short.learning_rate / 3
    assert find_settings(lines_of(bowl(0.1)), ahead(steps=1), 1e-3) == short


def test_it_costs_what_it_may_and_little_where_it_may_cost_nothing() -> None:
    for records in (0, 300, 1000, 5000):
        found = find_settings(lines_of(bowl()), ahead(records), 1e-3)
        assert found.records <= max(records, 160 + 3 * SIZES[0][0] * SIZES[0][1]) + 36


def test_many_steps_at_the_rate_lower_a_bowl_whose_records_disagree() -> None:
    """The oracle is the run itself: random directions, one record a step, in float64 outside of the package."""
    rate = find_settings(lines_of(bowl(0.05)), ahead(112, steps=2000), 1e-3).learning_rate
    random = np.random.default_rng(0)
    at = Point().at.double().numpy()
    tilt = 0.05 * torch.randn(RECORDS, SIZE, generator=torch.Generator().manual_seed(1)).double().numpy()

    def loss(at: np.ndarray) -> float:
        return CURVATURE / 2 * float(at @ at) + float((tilt @ at).mean())

    start = loss(at)
    for _ in range(2000):
        z = random.choice([-1.0, 1.0], SIZE)
        at = at - rate * float((CURVATURE * at + tilt[random.integers(RECORDS)]) @ z) * z
    assert loss(at) < start


@pytest.mark.parametrize(
    ("value", "said"),
    [(lambda at: 0 * at.sum() + 3, "no perturbation radius"), (lambda at: at.sum() * float("nan"), "NaN")],
    ids=["flat", "nan"],
)
def test_a_loss_without_an_answer_ends_in_a_typed_error(value: object, said: str) -> None:
    def losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found = value(model().double())  # type: ignore[operator]
        return found.repeat(len(batch.input_ids)), torch.ones(len(batch.input_ids))

    with pytest.raises(DivergenceError, match=said):
        find_settings(lines_of(losses), ahead(), 1e-3)


def test_a_score_that_moves_in_steps_gets_a_radius_at_which_it_moves() -> None:
    def stairs(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        found = -((model().double().sum() + batch.input_ids[:, 0]) / 4).round() / 100
        return found, torch.ones(len(found))

    lines = lines_of(stairs)
    found = find_settings(lines, ahead(), 1e-3, stepped=True)
    assert found.eps is not None
    assert found.eps > 1e-3
    assert found.learning_rate > 0


@pytest.mark.parametrize("size", [0.01, 5.0])
def test_a_standardised_slope_has_size_one_whatever_steps_along_it(size: float) -> None:
    fzoo, plain = tuning_method("fzoo"), with_options(tuning_method("fzoo"), {"estimate": "one_sided"})
    assert (scale_of(fzoo, size, 8), scale_of(plain, size, 8)) == (pytest.approx(size), 1.0)
    adam = [with_options(method, {"optimiser": "adam"}) for method in (fzoo, plain)]
    assert scale_of(adam[0], size, 8) == pytest.approx(scale_of(adam[1], size, 8))
