from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgetune.core.errors import MissingExtraError
from edgetune.core.events import Event, Failed, Sample
from edgetune.core.export_events import Verified
from edgetune.report.html import write_report
from edgetune.report.plots import plots
from edgetune.report.summary import read_summary
from edgetune.report.verdict import verdict

from .logs import Write, full_run, layers, round_, stage, started, traffic

VOID = {"meta", "link", "br", "img", "hr"}


class Checker(HTMLParser):
    """Complain of tags that do not match, ids used twice, and anything that loads or runs."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "embed", "img", "base"}
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "action", "data"}:
                assert (value or "").startswith(("#", "data:"))
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in {"td", "th", "p", "span", "dd", "dt"}:
            self.text.append(" ")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(folder: Path) -> tuple[str, str]:
    """Write the report; return its source and its visible text, white space folded."""
    source = write_report(folder).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(source)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert {reference[1:] for reference in checker.references if reference[0] == "#"} <= set(checker.ids)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    return source, " ".join("".join(checker.text).split())


def test_a_complete_run(write: Write) -> None:
    source, text = checked(write(full_run()))
    assert source.count("<svg") == 9
    assert "http:" not in source
    assert "https:" not in source
    assert "Rouge-L 41.2 (base) → 70.3 (tuned) → 69.8 (compressed) on 100 held-out records" in text
    assert "1.2 kB up and 16.4 kB down a device and round" in text
    assert "1.1 MB file, checked in llama.cpp" in text
    assert "edgetune run quick --out runs/quick --seed 0" in text
    assert "method.learning_rate 0.0003" in text
    assert "torch 2.7.1+cpu" in text
    assert "Rouge-L rises from 41.2 (base) to 69.8 (llama.cpp)" in text
    assert "blake2s:round12" in text


def test_the_page_is_a_function_of_the_log(write: Write) -> None:
    folder = write(full_run())
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_text_from_the_log_is_escaped_everywhere(write: Write) -> None:
    evil = "</p><script>alert('&amp;')</script><img src=x onerror=alert(1)>"
    run = [
        replace(started(), command=evil, method=evil, versions={evil: evil}, config={evil: {"deep": [evil]}}),
        stage(evil, 1.0, 0.5, 10, 10, 1.0),
        stage("tuned", 1.0, 0.5, 10, 10, 1.0),
        replace(round_(1), digest=evil),
        replace(layers()[0], name=evil, grid=evil),
        Sample(evil, evil, evil, evil),
        replace(traffic(), alternatives={evil: {"payload_up_bytes": 5, "payload_down_bytes": 5}}),
        Verified(evil, 0.1, 0.1, 2.0, 2.0, 3),
        Failed(evil, 1),
    ]
    source, text = checked(write(run))
    assert evil in text
    assert "<script" not in source
    assert "<img" not in source


def test_mathematics_in_a_name_is_a_name(write: Write) -> None:
    costly = replace(
        traffic(), alternatives={"costs $5, $6_{": {"payload_up_bytes": 5, "payload_down_bytes": 5}}
    )
    assert "costs $5, $6_{" in checked(write([started(), costly]))[1]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ([], "Nothing has been measured yet"),
        ([started()], "Nothing has been measured yet"),
        ([started(), round_(1)], "Held-out loss 2.808"),
        (full_run()[:5], "This run has not finished"),
        (full_run()[:15], "after stage “tuned”"),
        ([*full_run()[:9], Failed("every loss was NaN", 9)], "failed after round 7, with exit code 9"),
        ([started(), replace(round_(1), payload_up_bytes=[], payload_down_bytes=[])], "By round"),
        ([started(), replace(round_(1), loss=None, train_loss=float("nan"))], "By round"),
        (
            [started(), stage("base", float("inf"), 0.0, 0, 0, None), stage("tuned", 1.0, 0.0, 0, 0, None)],
            "∞",
        ),
    ],
)
def test_runs_that_are_not_complete(write: Write, tmp_path: Path, run: list[Event], expected: str) -> None:
    (tmp_path / "events.jsonl").touch()
    assert expected in checked(write(run))[1]


def test_without_matplotlib_there_are_tables_and_advice(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = write(full_run())
    with pytest.raises(MissingExtraError):
        plots(read_summary(folder))
    source, text = checked(folder)
    assert "<svg" not in source
    assert "pip install 'edgetune[plots]'" in text
    assert "<details open>" in source
    assert "model.layers.0.q_proj" in text


def test_figures_take_colours_and_fonts_from_the_page(write: Write) -> None:
    for plot in plots(read_summary(write(full_run()))):
        assert "<text" in plot.svg
        assert "currentColor" in plot.svg
        assert "font-family" not in plot.svg
        assert not re.search(r"#0[1-6]0[1-6]0[1-6]|<style|<metadata|<!DOCTYPE", plot.svg)


def test_alternatives_that_know_their_memory_stand_beside_the_stages(write: Write) -> None:
    needed = {"payload_up_bytes": 5, "payload_down_bytes": 5, "peak_memory_bytes": 12_345_000_000}
    run = [*full_run()[:-2], replace(traffic(), alternatives={"backpropagation": needed})]
    plot = next(plot for plot in plots(read_summary(write(run))) if plot.name == "memory-by-stage")
    assert "12.3 GB" in plot.svg
    assert "backpropagation" in plot.svg
    assert plot.title == "Peak memory of the process is at most 71.0 MB (compressed)"


def test_many_matrices_and_rounds_are_drawn(write: Write) -> None:
    many = [replace(layer, name=f"{number}.{layer.name}") for number in range(8) for layer in layers()]
    source, text = checked(write([started(), *map(round_, range(1, 401)), *many]))
    assert "Held-out loss fell from" in text
    assert "in the median of 224 matrices" in text
    assert len(source) < 1_000_000


def test_answers_beyond_the_fifth_are_folded_away(write: Write) -> None:
    source, text = checked(write(full_run()))
    assert "2 more" in text
    assert source.index("Question 5") < source.index("2 more") < source.index("Question 6")


def test_a_worse_result_is_not_made_to_look_good(write: Write) -> None:
    worse = [started(), stage("base", 2.0, 50.0, 10, 10, None), stage("tuned", 3.0, 40.0, 10, 10, None)]
    summary = read_summary(write(worse))
    assert verdict(summary) == "Rouge-L 50.0 (base) → 40.0 (tuned) on 100 held-out records"
    titles = [plot.title for plot in plots(summary)]
    assert "Held-out loss rises from 2.000 (base) to 3.000 (tuned)" in titles


def test_a_file_nobody_reloaded_is_not_called_checked(write: Write) -> None:
    run = [event for event in full_run() if not isinstance(event, Verified)]
    assert "not checked in llama.cpp" in verdict(read_summary(write(run)))
