"""What a reader sees at any width: tables that fold or show that they scroll, even rows of cards, honest axes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from edgetune.core.events import StageFinished
from edgetune.report import svg, units
from edgetune.report.html import FEW, MANY, _columns, render
from edgetune.report.plots import plots
from edgetune.report.style import CSS
from edgetune.report.summary import Summary, read_summary

from .logs import Write, full_run, round_, started


def narrow(css: str) -> str:
    """Return the rules for a telephone."""
    start = css.index("@media (max-width: 34rem)")
    return css[start : css.index("\n}", start)]


def axes_of(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Draw every figure and keep its axes."""
    from matplotlib.figure import Figure

    found: dict[str, Any] = {}

    def drawn(name: str, height: float, draw: Callable[[Any], None]) -> str:
        found[name] = Figure(figsize=(svg.WIDTH, height)).add_subplot()
        draw(found[name])
        found[name].figure.canvas.draw()
        return ""

    monkeypatch.setattr(svg, "drawn", drawn)
    plots(summary)
    return found


def test_a_stage_becomes_a_card_whose_cells_bear_their_headings(write: Write) -> None:
    page = render(read_summary(write(full_run())))
    table = ElementTree.fromstring(re.search(r'<table class="folds".*?</table>', page, re.DOTALL)[0])  # type: ignore[index]
    head = [cell.text for cell in table.findall("thead/tr/th")]
    rows = table.findall("tbody/tr")
    assert [row.find("th").text for row in rows] == ["base", "tuned", "rounded", "compressed", "llama.cpp"]  # type: ignore[union-attr]
    for row in rows:
        assert [cell.get("data-head") for cell in row.findall("td")] == head[1:]
        assert {cell.get("role") for cell in row.iter() if cell is not row} == {"rowheader", "cell"}
    for rule in (
        ".folds td::before { content: attr(data-head)",
        ".folds tr { display: grid",
        ".folds tbody th",
    ):
        assert rule in narrow(CSS)


def test_every_other_table_of_figures_shows_that_it_scrolls(write: Write) -> None:
    page = render(read_summary(write(full_run())))
    assert len(re.findall(r'<div class="scroll [a-z]*" tabindex="0"><table>', page)) == 3
    assert len(re.findall(r"<table(?! class=\"(?:folds|text)\")", page)) == 3
    shadows = CSS[CSS.index(".scroll {") :].split("}")[0]
    assert "overflow-x: auto" in shadows
    assert (shadows.count(" local"), shadows.count(" scroll")) == (2, 2), (
        "covers move with the table, shadows stay"
    )


@pytest.mark.parametrize("most", [1, FEW, MANY])
def test_no_row_of_cards_holds_one_alone_unless_all_do(most: int) -> None:
    for cards in range(1, 30):
        columns = _columns(cards, most)
        assert 1 <= columns <= most
        assert columns == 1 or cards % columns != 1
    assert [_columns(cards, MANY) for cards in (2, 3, 4, 5, 6)] == [2, 3, 4, 5, 3]
    assert [_columns(cards, FEW) for cards in (2, 3, 4, 5, 6)] == [2, 3, 2, 3, 3]


def test_the_page_says_how_many_answers_stand_in_a_row(write: Write) -> None:
    page = render(read_summary(write(full_run())))
    assert page.count('class="answers" style="--few: 3; --many: 5"') == 7
    for variable in ("--few", "--many"):
        assert f"repeat(var({variable}), " in CSS


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ("edgetune federate fedkseed --out x", "federate"),
        ("edgetune tune mezo", "tune"),
        ("edgetune run", "run"),
        ("python script.py federate", "run"),
        ("", "run"),
    ],
)
def test_titles_name_the_command(said: str, command: str, write: Write) -> None:
    page = render(read_summary(write([replace(started(), command=said), round_(1)])))
    assert f"<title>edgetune {command}: fedkseed, unfinished</title>" in page
    assert f"<h1>edgetune {command}, fedkseed</h1>" in page


def test_bars_stand_on_zero_and_never_on_a_logarithmic_axis(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = axes_of(read_summary(write(full_run())), monkeypatch)
    scales = {name: {axes.get_xscale(), axes.get_yscale()} for name, axes in figures.items()}
    assert {name for name, scale in scales.items() if "log" in scale} == {
        "bytes-by-method",
        "layer-errors",
        "size-against-kl",
    }
    assert {name for name, axes in figures.items() if axes.patches} == {
        f"{what}-by-stage" for what in ("loss", "rouge", "size", "memory")
    }
    for name, axes in figures.items():
        for bar in axes.patches:
            assert "log" not in scales[name]
            assert bar.get_x() == 0
        if axes.patches:
            assert axes.get_xlim()[0] == 0


def test_every_payload_is_a_point_where_it_belongs(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = axes_of(read_summary(write(full_run())), monkeypatch)["bytes-by-method"]
    up, down = axes.lines
    assert list(up.get_xdata()) == [1210, 2_207_900, 131_600]
    assert list(down.get_xdata()) == [16_412, 2_207_900, 131_600]
    left, right = axes.get_xlim()
    assert left < 1210 < 2_207_900 < right


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_ticks_have_no_decimals_that_say_nothing_and_none_missing(
    scale: float, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [
        replace(event, loss=event.loss * scale, size_bytes=int(event.size_bytes * scale))
        if isinstance(event, StageFinished)
        else event
        for event in full_run()
    ]
    figures = axes_of(read_summary(write(run)), monkeypatch)
    for name in ("loss-by-stage", "rouge-by-stage", "size-by-stage", "memory-by-stage"):
        axis = figures[name].xaxis
        for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True):
            number, _, unit = label.get_text().partition(" ")
            factor = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
            assert float(number) * factor == pytest.approx(place, rel=1e-5, abs=1e-12)
            assert not re.search(r"\.\d*0$|\.$", number)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1.25e6, "1.25 MB"),
        (2.5e8, "250 MB"),
        (1e10, "10 GB"),
        (3e18, "3000 PB"),
    ],
)
def test_a_size_on_an_axis_is_not_rounded(count: float, text: str) -> None:
    assert units.size_unrounded(count) == text
