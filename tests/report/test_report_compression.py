"""What the report says of a compression: calibration, matrices in trouble, size against divergence."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.compression_events import Calibrated
from edgetune.core.errors import DataError
from edgetune.report.html import write_report
from edgetune.report.plots import plots
from edgetune.report.rivals import read_rivals
from edgetune.report.summary import read_summary, write_summary

from .logs import Write, full_run, layers, started


def test_what_it_was_calibrated_on_reaches_summary_and_page(write: Write) -> None:
    folder = write([*full_run()[:-1], Calibrated("notes.txt", 900, 2, 1024), full_run()[-1]])
    content = json.loads(write_summary(folder).read_text("utf-8"))
    assert content["calibration"] == {
        "source": "notes.txt", "tokens": 900, "sequences": 2, "widest": 1024,
    }  # fmt: skip
    page = write_report(folder).read_text("utf-8")
    assert "Calibration: 900 tokens in 2 sequences of notes.txt, fewer than the 1,024 inputs" in page


def test_matrices_that_fell_back_or_were_damped_more_are_red(write: Write) -> None:
    run = [
        replace(one, fallback=True) if one.name == "model.layers.0.q_proj"
        else replace(one, damping=0.1) if one.name == "model.layers.3.down_proj" else one
        for one in layers()
    ]  # fmt: skip
    fine = write_report(write(full_run())).read_text("utf-8")
    page = write_report(write([started(), *run])).read_text("utf-8")
    red = re.findall(r'<tr class="bad"><th scope="row">(.*?)</th>', page)
    assert red == ["model.layers.0.q_proj", "model.layers.3.down_proj"]
    assert "2 fell back or needed more damping" in page
    assert 'class="bad"' not in fine
    drawn, without = (
        re.search(r'<svg[^>]*>(?:(?!</svg>).)*id="layer-errors-.*?</svg>', one, re.DOTALL)
        for one in (page, fine)
    )
    assert drawn is not None
    assert without is not None
    assert "var(--bad" in drawn[0]
    assert "var(--bad" not in without[0]


def test_sizes_stand_against_divergence_beside_rivals(write: Write, tmp_path: Path) -> None:
    folder = write(full_run())
    alone = {plot.name: plot for plot in plots(read_summary(folder))}["size-against-kl"]
    assert alone.title == ("KL 4.4e-04 at 1.1 MB (compressed), 1/1.8 of rounded, the best of the run's own")
    file = tmp_path / "rivals.json"
    listed = [
        {"name": "Q4_K <imatrix>", "bytes": 1_000_000, "kl": 5.5e-4, "seeds": 3},
        {"name": "larger", "bytes": 9_000_000, "kl": 1e-6},
    ]
    file.write_text(json.dumps(listed), "utf-8")
    assert execute(["report", str(folder), "--rivals", str(file)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "1/1.2 of Q4_K &lt;imatrix&gt;, the best of the others at most as large" in page
    assert "larger</text>" in page


def test_no_point_no_figure(write: Write) -> None:
    run = [one for one in full_run() if getattr(one, "kl", None) is None]
    assert "size-against-kl" not in {plot.name for plot in plots(read_summary(write(run)))}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot read"),
        ('{"name": 1}', "no list"),
        ('[{"name": "x", "bytes": 5, "kl": NaN}]', "number 1"),
        ('[{"name": "x", "bytes": 5, "kl": 1}, {"name": "y", "bytes": true, "kl": 1}]', "number 2"),
        ("[7]", "number 1"),
    ],
)
def test_bad_rivals_are_named(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "rivals.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=what):
        read_rivals(path)
