"""Attacks that name records, on uploads that are known: what is exact is found, and chance stays chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from edgetune.privacy.figures import auc, found, ranked, recovered
from edgetune.privacy.identify import Candidates


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def of(uploads: np.ndarray, weights: np.ndarray | None = None) -> Candidates:
    return Candidates(uploads @ uploads.T, np.ones(len(uploads)) if weights is None else weights)


def test_cosines_rank_as_those_of_the_vectors_do() -> None:
    uploads, sent = draw(9, 30), draw(30, seed=1)
    expected = uploads @ sent / np.linalg.norm(uploads, axis=1)
    np.testing.assert_allclose(of(uploads).cosines(uploads @ sent), expected)


def test_an_upload_of_nothing_is_like_none() -> None:
    uploads = draw(3, 5)
    uploads[1] = 0
    assert of(uploads).cosines(uploads @ draw(5, seed=1))[1] == 0


@pytest.mark.parametrize("place", range(0, 20, 5))
def test_the_exact_upload_of_a_record_is_found_in_any_number_of_numbers(place: int) -> None:
    for numbers in (1, 3, 400):
        uploads = draw(20, numbers, seed=numbers)
        assert of(uploads).subset(uploads @ uploads[place], 1) == [place]


def test_a_mean_of_records_by_their_tokens_is_taken_apart() -> None:
    uploads, weights = draw(64, 200), np.arange(1.0, 65.0)
    secret = [3, 17, 40, 41, 60]
    sent = weights[secret] @ uploads[secret] / weights[secret].sum()
    assert sorted(of(uploads, weights).subset(uploads @ sent, 5)) == secret


def test_the_subset_is_the_closest_of_all() -> None:
    uploads, weights, sent = draw(8, 6), np.abs(draw(8, seed=3)) + 0.1, draw(6, seed=4)

    def distance(chosen: tuple[int, ...]) -> float:
        mine = weights[list(chosen)]
        return float(np.linalg.norm(sent - mine @ uploads[list(chosen)] / mine.sum()))

    best = min(combinations(range(8), 3), key=distance)
    assert sorted(of(uploads, weights).subset(uploads @ sent, 3)) == list(best)


def test_uploads_that_have_nothing_to_do_with_the_candidates_give_chance() -> None:
    ties, areas, recalls = np.random.default_rng(5), [], []
    for trial in range(400):
        uploads, sent = draw(32, 8, seed=1000 + trial), draw(8, seed=5000 + trial)
        one = found(of(uploads).cosines(uploads @ sent), [0, 1, 2, 3], ties)
        areas.append(one.auc)
        recalls.append(one.recall)
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / 20
    assert abs(np.mean(recalls) - 4 / 32) < 4 * np.std(recalls) / 20


def test_the_area_is_that_of_the_pairs_and_a_tie_is_half() -> None:
    scores = np.array([3.0, 1.0, 2.0, 2.0])
    assert auc(scores, [0]) == 1
    assert auc(scores, [1]) == 0
    assert auc(scores, [2]) == pytest.approx((0 + 1 + 0.5) / 3)
    assert auc(np.zeros(4), [1, 3]) == 0.5


def test_equal_scores_are_ordered_by_chance_alone() -> None:
    ties = np.random.default_rng(0)
    first = [int(ranked(np.array([0.0, 1.0, 1.0, 0.0]), ties)[0]) for _ in range(200)]
    assert set(first) == {1, 2}
    assert 60 < first.count(1) < 140


def test_what_everybody_knows_is_not_recovered() -> None:
    assert recovered([1, 2, 9], [1, 2, 3, 4]) == 0.5
    assert recovered([1, 2, 9], [1, 2, 3, 4], known=[1]) == pytest.approx(1 / 3)
    assert np.isnan(recovered([1], [1], known=[1]))
