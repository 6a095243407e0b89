from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgetune.core.events import Event, Failed, StageFinished
from edgetune.report import units
from edgetune.report.grids import rounds
from edgetune.report.summary import read_summary, summarise
from edgetune.report.table import print_result

from .logs import Write, far, full_run, round_, stage, started


def shown(folder: Path, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_result(console, read_summary(folder))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_a_complete_run_fits(write: Write, width: int) -> None:
    text = shown(write(full_run()), width)
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines() if line.strip()]
    assert ["base", "3.410", "–", "30.27", "41.2", "2.2", "MB", "48.0", "MB", "9.4", "s"] in rows
    assert ["llama.cpp", "1.371", "–", "3.940", "69.8", "1.1", "MB", "21.0", "MB", "9.4", "s"] in rows
    assert ["rounded", "1.520", "8.0e-04", "4.572", "64.1", "1.1", "MB", "55.0", "MB", "9.4", "s"] in rows
    assert ["compressed", "2.2e-04", "4.4e-04", "1.8e-02", "99.56", "%"] in rows
    assert "45% less on responses (4.0e-04 to 2.2e-04), 45% less on all tokens" in " ".join(text.split())
    assert "1/1,825 up, 1/135 down" in text
    assert "1/109 up, 1/8 down" in text
    assert "base 1.710, tuned 1.930" in " ".join(text.split())
    assert "Checked in llama.cpp" in text


def test_a_score_takes_the_place_of_perplexity(write: Write) -> None:
    scored = [
        replace(one, metric="exact match", score=12.5) if isinstance(one, StageFinished) else one
        for one in full_run()
    ]
    text = shown(write(scored), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "Exact match" in text
    assert "Perplexity" not in text
    row = next(line for line in text.splitlines() if line.strip().startswith("base"))
    assert row.split()[1:5] == ["3.410", "–", "12.5", "41.2"]


def test_a_run_that_compressed_nothing_has_no_divergence(write: Write) -> None:
    text = shown(write([one for one in full_run() if getattr(one, "kl", None) is None]), 80)
    assert "KL" not in text
    assert "first choice" not in text


def test_a_solver_that_is_worse_than_rounding_is_not_made_to_look_good(write: Write) -> None:
    worse = far(stage("compressed", 1.4, 69.0, 10, 10, None), 1.6e-3)
    text = " ".join(shown(write([*full_run(), worse]), 80).split())
    assert "100% more on all tokens (8.0e-04 to 1.6e-03)" in text


def test_large_numbers_fit_80_columns(write: Write) -> None:
    huge = replace(stage("compressed", 13.81, 0.0, 4_431_234_567, 71_000_000_000, None), seconds=93_000.0)
    text = shown(write([started(), replace(huge, perplexity=1e6), round_(1)]), 80)
    row = next(line for line in text.splitlines() if "13.810" in line)
    assert row.split() == [
        "compressed",
        "13.810",
        "1.0e+06",
        "0.0",
        "4.4",
        "GB",
        "71.0",
        "GB",
        "25",
        "h",
        "50",
        "min",
    ]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (full_run()[:4], "has not finished: its log stops after round 2"),
        (
            [*full_run()[:4], Failed("out of [memory]", 1)],
            "failed after round 2, with exit code 1: out of [memory]",
        ),
        ([started()], "before its first round"),
        (full_run()[:16], "after stage “rounded”"),
    ],
)
def test_a_run_that_did_not_finish_says_so(write: Write, run: list[Event], expected: str) -> None:
    assert expected in " ".join(shown(write(run), 80).split())


def test_an_empty_log_prints_no_tables() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_result(console, summarise([]))
    assert isinstance(console.file, io.StringIO)
    assert "Stage" not in console.file.getvalue()


def test_names_are_text_and_not_markup(write: Write) -> None:
    assert "[red]x" in shown(write([started(), stage("[red]x", 1.0, 0.5, 1, 1, None)]), 80)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (123, "123 B"), (999, "999 B"), (1000, "1.0 kB"), (17_612, "17.6 kB"), (99_960, "100 kB"),
     (340_000, "340 kB"), (999_600, "1.0 MB"), (1_098_240, "1.1 MB"), (2.2e9, "2.2 GB"), (5e15, "5.0 PB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 s"), (0.42, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (245, "4 min 05 s"),
     (3599.7, "1 h 00 min"), (7980, "2 h 13 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(1, 340, "1/340"), (10, 26, "1/2.6"), (18, 10, "1.8 times"), (100, 101, "the same"), (0, 5, "–"), (5, 0, "–")],
)  # fmt: skip
def test_shares(part: float, whole: float, text: str) -> None:
    assert units.share(part, whole) == text


def test_numbers_that_are_none_or_not_finite() -> None:
    values = (None, float("nan"), float("inf"))
    assert [units.loss(value) for value in values] == ["–", "NaN", "∞"]
    assert [units.perplexity(value) for value in values] == ["–", "NaN", "∞"]
    assert [units.rouge(value) for value in values] == ["–", "–", "∞"]
    assert (units.perplexity(999.9), units.perplexity(54_321.4)) == ("999.90", "54,321")


def test_the_residual_of_the_mean_is_a_column_where_it_was_measured(write: Write) -> None:
    measured = read_summary(write([started(), round_(1), replace(round_(2), aggregation_residual=1.827)]))
    grid = rounds(measured)
    assert grid.head[-1] == "Residual of the mean"
    assert [row[-1] for row in grid.rows] == [units.MISSING, "1.8"]
    assert rounds(read_summary(write([started(), round_(1)]))).head[-1] == "Time"
