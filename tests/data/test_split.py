from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import ConfigError, DataError
from edgetune.data import split as split_module
from edgetune.data.holdout import hold_out, set_apart, text_of
from edgetune.data.records import Record
from edgetune.data.split import SPLITS, DirichletByCategory, DirichletQuantity, Iid, Split, _cut
from edgetune.data.streams import stream

CATEGORIES = [f"c{index % 4}" for index in range(400)]
ALL = [Iid(), DirichletByCategory(1.0), DirichletQuantity(2.0)]


@pytest.mark.parametrize("split", ALL)
@settings(deadline=None)
@given(
    categories=st.lists(st.sampled_from("abcde"), min_size=12, max_size=60),
    devices=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_shares_are_disjoint_cover_all_and_keep_the_minimum(
    split: Split, categories: list[str], devices: int, seed: int
) -> None:
    shares = split(categories, devices, seed=seed, minimum=1)
    assert sorted(chain(*shares)) == list(range(len(categories)))
    assert len(shares) == devices
    assert all(len(share) >= 1 and list(share) == sorted(share) for share in shares)


@pytest.mark.parametrize("split", ALL)
def test_the_seed_decides_and_nothing_else(split: Split) -> None:
    np.random.seed(1)
    first = split(CATEGORIES, 5, seed=3, minimum=2)
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert first == split(CATEGORIES, 5, seed=3, minimum=2)
    assert first != split(CATEGORIES, 5, seed=4, minimum=2)
    assert state == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]


def test_iid_parts_are_equal() -> None:
    assert {len(share) for share in Iid()(CATEGORIES[:398], 5, seed=0, minimum=0)} == {79, 80}


def skew(shares: Sequence[Sequence[int]]) -> float:
    """Mean over devices of the largest category's share."""
    tallies = [np.bincount([int(CATEGORIES[i][1]) for i in share], minlength=4) for share in shares]
    return float(np.mean([tally.max() / tally.sum() for tally in tallies]))


def test_a_smaller_alpha_skews_more() -> None:
    by_category = [
        skew(DirichletByCategory(alpha)(CATEGORIES, 8, seed=0, minimum=1)) for alpha in (0.1, 1.0, 1e5)
    ]
    assert by_category[0] > by_category[1] > by_category[2]
    assert by_category[2] < 0.3
    sizes = [
        np.std([len(share) for share in DirichletQuantity(alpha)(CATEGORIES, 8, seed=0, minimum=0)])
        for alpha in (0.1, 1.0, 1e5)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_quantity_skew_leaves_categories_even() -> None:
    shares = DirichletQuantity(1.0)([f"c{index % 4}" for index in range(40_000)], 4, seed=0, minimum=1000)
    for share in shares:
        tally = np.bincount([index % 4 for index in share]) / len(share)
        assert abs(tally - 0.25).max() < 0.05


def test_a_device_that_holds_its_share_gets_no_later_category() -> None:
    # Two categories of one record each over two devices: whoever got the first is full.
    for seed in range(20):
        assert [len(share) for share in DirichletByCategory(1.0)(["a", "b"], 2, seed=seed, minimum=0)] == [
            1,
            1,
        ]


def reference_partition(
    labels: np.ndarray, devices: int, alpha: float, minimum: int, rng: np.random.Generator
):
    """FedKSeed's `partition_idx_labeldir`, line for line, for the distribution of sizes."""
    least, total = -1, len(labels)
    while least < minimum:
        batches: list[list[int]] = [[] for _ in range(devices)]
        for label in np.unique(labels):
            members = np.where(labels == label)[0]
            rng.shuffle(members)
            shares = rng.dirichlet(np.repeat(alpha, devices))
            shares = np.array(
                [share * (len(batch) < total / devices) for share, batch in zip(shares, batches, strict=True)]
            )
            cuts = (np.cumsum(shares / shares.sum()) * len(members)).astype(int)[:-1]
            batches = [
                batch + part.tolist() for batch, part in zip(batches, np.split(members, cuts), strict=True)
            ]
        least = min(map(len, batches))
    return batches


def test_sizes_are_distributed_as_in_the_published_procedure() -> None:
    rng, labels = np.random.default_rng(0), np.array(CATEGORIES)
    ours, theirs = [], []
    for seed in range(150):
        ours.append(sorted(map(len, DirichletByCategory(0.5)(CATEGORIES, 6, seed=seed, minimum=10))))
        theirs.append(sorted(map(len, reference_partition(labels, 6, 0.5, 10, rng))))
    spread = np.std(theirs, axis=0) / np.sqrt(150)
    assert (abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0)) < 5 * spread + 0.5).all()


SCARCE = [f"c{index % 40}" for index in range(200)]
"""Forty categories of five records each."""


@pytest.mark.parametrize(
    ("split", "categories"),
    [
        (DirichletByCategory(0.3), SCARCE),
        (DirichletByCategory(0.3), CATEGORIES),
        (DirichletQuantity(0.3), SCARCE),
    ],
)
def test_no_device_differs_from_another_in_distribution(split: Split, categories: list[str]) -> None:
    """Under exchangeability every device is the largest (smallest) one equally often, and means are equal."""
    devices, runs = 10, 600
    sizes = np.array(
        [[len(share) for share in split(categories, devices, seed=seed, minimum=0)] for seed in range(runs)]
    )
    spread = sizes.std() / np.sqrt(runs)
    assert abs(sizes.mean(axis=0) - len(categories) / devices).max() < 4.5 * spread
    for extreme in (sizes.max(axis=1), sizes.min(axis=1)):
        ties = sizes == extreme[:, None]
        wins = (ties / ties.sum(axis=1, keepdims=True)).sum(axis=0)
        assert abs(wins - runs / devices).max() < 4.5 * np.sqrt(runs / devices)


def test_a_cut_is_right_on_average_for_every_device_and_off_by_less_than_one() -> None:
    draws = stream(0, "test")
    shares = np.array([0.05, 0.3, 0.0, 0.33, 0.32])
    for size in (1, 2, 7, 1000):
        counts = np.array([_cut(draws, shares, size) for _ in range(4000)])
        assert (counts.sum(axis=1) == size).all()
        assert (abs(counts - shares * size) < 1 + 1e-9).all()
        assert (counts[:, 2] == 0).all()
        assert abs(counts.mean(axis=0) - shares * size).max() < 4.5 * 0.5 / np.sqrt(4000)


def test_the_joint_law_of_sizes_does_not_change_when_devices_change_places() -> None:
    """Two records, one category: P(sizes) from many seeds against its mirror image, pair by pair."""
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        sizes = tuple(map(len, DirichletByCategory(1.0)(["a", "a"], 3, seed=seed, minimum=0)))
        seen[sizes] = seen.get(sizes, 0) + 1
    for kind in ((2, 0, 0), (1, 1, 0)):
        counts = [seen.get(one, 0) for one in set(itertools.permutations(kind))]
        assert max(counts) - min(counts) < 4.5 * np.sqrt(2 * np.mean(counts))
    # Dir(1) on three devices, u uniform: P(one device gets both) = E[sum of max(2 p_i - 1, 0)] = 3 * 1/12
    both = sum(count for sizes, count in seen.items() if max(sizes) == 2) / 3000
    assert both == pytest.approx(0.25, abs=4.5 * np.sqrt(0.25 * 0.75 / 3000))


def test_many_categories_with_fewer_records_than_devices_are_spread() -> None:
    categories = [f"c{index}" for index in range(2000)]
    assert {len(share) for share in DirichletByCategory(0.5)(categories, 100, seed=0, minimum=19)} <= {
        19,
        20,
        21,
    }


@pytest.mark.parametrize(
    ("split", "categories", "devices", "minimum"),
    [
        (DirichletByCategory(0.5), CATEGORIES, 10, 35),
        (DirichletByCategory(0.01), CATEGORIES, 20, 15),
        (DirichletByCategory(1e-300), CATEGORIES, 20, 4),
        (DirichletQuantity(0.05), CATEGORIES, 20, 10),
        (DirichletQuantity(2.0), CATEGORIES, 5, 75),
    ],
)
def test_a_minimum_that_no_draw_reaches_ends_with_advice_that_works(
    monkeypatch: pytest.MonkeyPatch, split: Any, categories: list[str], devices: int, minimum: int
) -> None:
    monkeypatch.setattr("edgetune.data.split.TRIES", 60)
    with pytest.raises(DataError, match="no split in 60 draws") as caught:
        split(categories, devices, seed=3, minimum=minimum)
    advice = dict(re.findall(r"(\w+\.\w+)=([\w.e+-]+)", str(caught.value.hint)))
    assert advice.pop("split.kind") == "iid"
    Iid()(categories, devices, seed=3, minimum=minimum)
    assert advice
    for name, value in advice.items():
        alpha, settings = split.alpha, {"devices": devices, "minimum": minimum}
        if name == "split.alpha":
            alpha = float(value)
        else:
            settings[name.split(".")[1]] = int(value)
        shares = type(split)(alpha)(categories, settings["devices"], seed=3, minimum=settings["minimum"])
        assert min(map(len, shares)) >= settings["minimum"]


def test_what_a_refusal_costs_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = split_module._spread
    monkeypatch.setattr(split_module, "WORK", 6000)
    monkeypatch.setattr(
        split_module,
        "_spread",
        lambda draws, sizes, *rest: drawn.append(len(sizes)) or real(draws, sizes, *rest),
    )
    with pytest.raises(DataError):
        DirichletByCategory(1e-3)([f"c{index % 300}" for index in range(900)], 20, seed=0, minimum=45)
    assert 1000 < sum(drawn) < 2 * 6000


def test_extreme_alphas_give_a_split_or_an_error() -> None:
    for alpha in (1e-300, 1e-3, 1e300):
        for split in (DirichletByCategory(alpha), DirichletQuantity(alpha)):
            assert sorted(chain(*split(CATEGORIES, 3, seed=0, minimum=0))) == list(range(400))


@pytest.mark.parametrize("split", ALL)
def test_refuses_what_cannot_be_split(split: Split) -> None:
    with pytest.raises(DataError, match="cannot give 5 devices 100 each"):
        split(CATEGORIES, 5, seed=0, minimum=100)
    with pytest.raises(DataError, match="0 records"):
        split([], 1, seed=0, minimum=0)
    for wrong in ({"devices": 0}, {"seed": -1}, {"minimum": -1}):
        with pytest.raises(ConfigError):
            split(CATEGORIES, **{"devices": 2, "seed": 0, "minimum": 0, **wrong})


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_an_alpha_that_is_not_positive(alpha: float) -> None:
    for kind in (DirichletByCategory, DirichletQuantity):
        with pytest.raises(ConfigError, match="alpha"):
            kind(alpha)


def test_splits_are_found_by_name() -> None:
    assert {name: kind.__name__ for name, kind in SPLITS.items()} == {
        "iid": "Iid",
        "dirichlet-category": "DirichletByCategory",
        "dirichlet-quantity": "DirichletQuantity",
    }


RECORDS = [
    Record(f"i{index}", "", "r", "summarization" if index % 3 == 0 else "open_qa") for index in range(30)
]


def test_holds_out_a_whole_category() -> None:
    apart = hold_out(RECORDS, category="summarization", seed=0)
    assert apart.held_out == tuple(range(0, 30, 3))
    assert sorted(apart.train + apart.held_out) == list(range(30))


def test_holds_out_random_records() -> None:
    apart = hold_out(RECORDS, count=7, seed=0)
    assert len(apart.held_out) == 7
    assert sorted(apart.train + apart.held_out) == list(range(30))
    assert apart.held_out != hold_out(RECORDS, count=7, seed=1).held_out


def test_a_count_beside_a_category_thins_the_evaluation_only() -> None:
    apart = hold_out(RECORDS, category="summarization", count=4, seed=0)
    assert apart.train == hold_out(RECORDS, category="summarization", seed=0).train
    assert len(apart.held_out) == 4
    assert not set(apart.held_out) & set(apart.train)


def up_sampled(copies: int) -> list[Record]:
    """Twenty texts, each several times and in other white space, in changing order."""
    return [
        Record(f" i{index % 20}" + " " * (index % 3), "", f"r{index % 20}\n", "ab"[index % 2])
        for index in range(20 * copies)
    ]


@pytest.mark.parametrize(("category", "count"), [(None, 6), ("a", 4), ("a", None)])
@pytest.mark.parametrize("seed", range(5))
def test_no_text_that_is_held_out_is_trained_on(category: str | None, count: int | None, seed: int) -> None:
    records = up_sampled(5) + [Record(f"i{index}", "", f"r{index}", "b") for index in range(4)]
    apart = hold_out(records, category=category, count=count, seed=seed)
    held = [text_of(records[index]) for index in apart.held_out]
    assert set(held).isdisjoint(text_of(records[index]) for index in apart.train)
    assert {text_of(records[index]) for index in apart.copies} <= {
        text_of(record) for record in records if record.category == category
    } | set(held)
    assert not {*apart.train, *apart.held_out} & set(apart.copies)
    if count is not None:
        assert len(set(held)) == len(held) == count
    if category is None:
        assert sorted((*apart.train, *apart.held_out, *apart.copies)) == list(range(104))


def test_another_answer_makes_another_record() -> None:
    records = [Record("i", "", f"r{index}", "") for index in range(4)]
    assert hold_out(records, count=1, seed=0).copies == ()
    assert text_of(Record("a\tb", " c", "d\n\ne ", "x")) == text_of(Record("a b", "c ", "d e", "y"))
    assert text_of(Record("a b", "", "", "")) != text_of(Record("a", "b", "", ""))


def talks(count: int, turns: int) -> list[Record]:
    """So many conversations of so many answers, their records side by side."""
    return [
        Record(f"q{talk} {turn}", "", f"a{talk} {turn}", "", conversation=f"talk {talk}")
        for turn in range(turns)
        for talk in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("copies", [1, 3])
def test_no_conversation_is_both_trained_on_and_evaluated(seed: int, copies: int) -> None:
    records = talks(12, 4) * copies + [Record(f"i{index}", "", "r", "") for index in range(10)]
    apart = hold_out(records, count=10, seed=seed)
    assert len(apart.held_out) == 10
    of = [[records[index].conversation for index in part] for part in (apart.held_out, apart.train)]
    assert set(of[0]).isdisjoint(set(of[1]) - {""})
    assert len(set(of[0])) <= 10
    assert sorted((*apart.train, *apart.held_out, *apart.copies)) == list(range(len(records)))
    left_out = {records[index].conversation for index in apart.copies} - {""}
    assert left_out <= set(of[0])
    if copies == 1:
        assert len(left_out) <= 1  # the last one drawn, of which only some turns were wanted


def test_too_few_different_records_are_refused() -> None:
    with pytest.raises(DataError, match="cannot hold out 21 different records: these 100 are copies of 20"):
        hold_out(up_sampled(5), count=21, seed=0)
    with pytest.raises(DataError, match="nothing is left"):
        hold_out(up_sampled(5), count=20, seed=0)
    apart = hold_out(up_sampled(5), count=20, seed=0, training=False)
    assert (len(apart.held_out), apart.train) == (20, ())


def test_records_that_are_given_to_be_held_out_are_all_held_out() -> None:
    records = [Record(f"i{index}", "", "r", "") for index in (0, 1, 2, 3, 1, 1, 4)]
    apart = set_apart(records, [4, 5, 6])
    assert (apart.train, apart.held_out, apart.copies) == ((0, 2, 3), (4, 5, 6), (1,))
    with pytest.raises(
        DataError, match=r"of 3 records 2 are held out and 1 are copies of those.*data.held_out"
    ):
        set_apart(records[3:6], [0, 1])


def test_hold_out_refuses_what_it_cannot_do() -> None:
    with pytest.raises(DataError, match=r"'sumarization'.*open_qa.*did you mean 'summarization'"):
        hold_out(RECORDS, category="sumarization", seed=0)
    with pytest.raises(DataError, match=r"nor any other \(--columns category=COLUMN"):
        hold_out([Record("i", "", "r", "")] * 3, category="a", seed=0)
    with pytest.raises(DataError, match="nothing is left"):
        hold_out(RECORDS, count=30, seed=0)
    with pytest.raises(DataError, match="cannot hold out 31 of 30"):
        hold_out(RECORDS, count=31, seed=0)
    for wrong in ({}, {"count": 0}):
        with pytest.raises(ConfigError):
            hold_out(RECORDS, seed=0, **wrong)


def test_streams_are_independent_and_fixed() -> None:
    assert stream(0, "a").integers(1000) == stream(0, "a").integers(1000)
    assert stream(0, "a").integers(2**60) != stream(0, "b").integers(2**60)
    # Any change of these numbers changes every published split.
    assert stream(42, "split/iid").integers(0, 1000, 4).tolist() == [731, 323, 829, 908]
