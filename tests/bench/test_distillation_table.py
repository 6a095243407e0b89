"""The table of lessons: what is compared with what, from rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.bench import distillation as bench
from edgetune.cli.app import execute
from edgetune.cli.distillation_table import verdict

SCORES = {name: 10.0 * place for place, name in enumerate(bench.LESSONS)}


def _row(cell: bench.Lesson, off: float) -> dict[str, Any]:
    figures = {"rouge_l": SCORES[cell.what] + off, "loss": 0.5, "seconds": 3.0}
    before = {"base_loss": 0.7, "base_rouge_l": 40.0}
    return {"cell": cell.name, "what": cell.what, "seed": cell.seed, **figures, **before}


def test_lessons_are_compared_seed_by_seed() -> None:
    cells = bench.cells_of(3)
    assert len({cell.name for cell in cells}) == 3 * len(bench.LESSONS)
    rows = [_row(cell, 5.0 * cell.seed) for cell in cells]
    assert bench.ahead(rows, "supervised, forward", "no teacher") == (10.0, 0.0)  # seeds cancel
    line = bench.line_of([row for row in rows if row["what"] == "no teacher"])
    assert line["rouge_l"] == (5.0, 5.0)
    assert "+40.00 ± 0.00 to no teacher" in verdict(rows)
    assert "One seed" in verdict([row for row in rows if row["seed"] == 0])


def test_the_command_writes_its_page_and_runs_no_cell_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = list[str]()

    def taught(cell: bench.Lesson, out: Path, to: Path) -> dict[str, Any]:
        ran.append(cell.name)
        return _row(cell, 1.0 * cell.seed)

    monkeypatch.setattr(bench, "_taught", taught)
    for _ in range(2):
        assert execute(["bench", "distillation", "--seeds", "2", "--out", str(tmp_path)]) == 0
    assert len(ran) == 2 * len(bench.LESSONS)
    page = (tmp_path / "distillation.md").read_text()
    assert (
        "| on-policy, reverse | all prompts, few answers | 1.0 | 1.0 | 40.50 ± 0.71 | 0.5000 ± 0.0000 | 3 | 2 |"
        in page
    )


@pytest.mark.slow
def test_a_lesson_is_taught_from_start_to_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEACHER_STEPS", "START_STEPS"):
        monkeypatch.setattr(bench, name, 20)
    monkeypatch.setattr(bench, "RECORDS", 80)
    monkeypatch.setattr(bench, "FEW", 40)
    monkeypatch.setattr(bench, "HELD_OUT", 4)
    cell = bench.Lesson("on-policy, reverse", 0, 5e-4, 20)
    found = bench._taught(cell, tmp_path, tmp_path / "run")
    assert found["base_rouge_l"] >= 0
    assert found["loss"] > 0
    assert (tmp_path / "student-0" / "config.json").is_file()
