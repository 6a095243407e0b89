"""Which layers devices train: within budgets, exactly where that can be, else near the best of all that there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from edgetune.survey.assignment import assign, cost, value


def every_mask(layers: int, budget: float) -> list[np.ndarray]:
    masks = [np.array(bits, bool) for bits in product([0, 1], repeat=layers)]
    return [mask for mask in masks if mask.any() and cost(mask) <= budget]


def best_value(scores: np.ndarray, budgets: list[float], consistency: float) -> float:
    choices = product(*(every_mask(scores.shape[1], budget) for budget in budgets))
    return max(value(scores, np.stack(masks), consistency) for masks in choices)


def pairwise(scores: np.ndarray, masks: np.ndarray, consistency: float) -> float:
    total = float((scores * masks).sum())
    for one in range(len(masks)):
        for other in range(one):
            total -= consistency * float(((masks[one].astype(int) - masks[other]) ** 2).sum())
    return total


def test_the_cost_is_half_the_depth_and_half_the_number() -> None:
    assert cost(np.array([0, 0, 0, 1], bool)) == 1
    assert cost(np.array([1, 1, 1, 1], bool)) == 4
    assert cost(np.array([1, 0, 0, 0], bool)) == 2.5
    assert cost(np.zeros(4, bool)) == 0


def test_the_objective_is_the_papers_sum_over_pairs() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, masks = random.random((5, 6)), random.random((5, 6)) < 0.5
        assert value(scores, masks, 0.3) == pytest.approx(pairwise(scores, masks, 0.3))


@pytest.mark.parametrize("consistency", [0.0, 0.05, 0.3, 5.0])
def test_masks_keep_to_their_budgets_and_come_close_to_the_best_of_all(consistency: float) -> None:
    random, reached = np.random.default_rng(1), []
    for _ in range(25):
        scores = random.random((3, 4)) ** 3
        budgets = [float(one) for one in random.integers(1, 5, 3)]
        masks = np.stack(assign(scores, budgets, consistency))
        assert all(cost(mask) <= budget for mask, budget in zip(masks, budgets, strict=True))
        best = best_value(scores, budgets, consistency)
        found = value(scores, masks, consistency)
        assert found <= best + 1e-12
        reached.append(found >= best - 1e-12)
    assert np.mean(reached) >= (1.0 if consistency == 0 else 0.8)


def test_a_growing_price_of_disagreement_leads_from_every_devices_own_choice_to_one_for_all() -> None:
    random = np.random.default_rng(2)
    scores, apart = random.random((6, 8)), []
    for consistency in (0.0, 0.02, 0.05, 0.1, 0.3, 10.0):
        masks = np.stack(assign(scores, [4.0] * 6, consistency)).astype(int)
        apart.append(sum(int(((one - other) ** 2).sum()) for one in masks for other in masks) // 2)
    alone = [max(every_mask(8, 4.0), key=lambda mask, row=row: float(row[mask].sum())) for row in scores]
    assert np.array_equal(np.stack(assign(scores, [4.0] * 6, 0.0)), np.stack(alone))
    assert apart[0] > 0 == apart[-1]
    assert apart == sorted(apart, reverse=True)


def test_the_budget_of_everything_takes_everything() -> None:
    assert all(mask.all() for mask in assign(np.random.default_rng(3).random((4, 7)), [7.0] * 4, 0.2))
