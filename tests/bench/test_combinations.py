from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench.combinations import (
    ORDERS,
    Combination,
    combinations_of,
    lines_of,
    order_verdicts,
    row_of,
)
from edgetune.cli.combinations_table import page_of


def row(tuning: str, order: str, seed: int, **losses: float) -> dict[str, Any]:
    ways = {
        way: {"loss": loss, "rouge_l": 50.0, "kl": 0.0, "size_bytes": 1000, "above_bytes": 10}
        for way, loss in losses.items()
    }
    return {
        "cell": f"{tuning}{order}{seed}", "model": "embedded", "task": "", "tuning": tuning, "order": order,
        "seed": seed, "base_loss": 0.3, "base_rouge_l": 40.0, "peak_memory_bytes": 10**8, "total_bytes": 5,
        "ways": ways,
    }  # fmt: skip


ROWS = [
    row("fedit", "prune, tune", 0, rtn=0.20, gptaq=0.10),
    row("fedit", "prune, tune", 1, rtn=0.22, gptaq=0.12),
    row("fedit", "tune, prune", 0, rtn=0.25, gptaq=0.11),
    row("fedit", "tune, prune", 1, rtn=0.31, gptaq=0.13),
    row("none", "tune", 0, rtn=0.40, gptaq=0.35),
]


def test_every_tuning_is_combined_with_every_order_and_the_untuned_model_is_pruned_once() -> None:
    found = combinations_of(2, tunings=["none", "fedit"])
    assert len({one.name for one in found}) == len(found) == 2 * (2 + 3)
    stages = {(one.cell.method, one.order): one.stages for one in found}
    assert stages["fedit", "prune, tune"] == ["base", "prune", "tune"]
    assert stages["none", "tune, prune"] == ["base", "prune"]
    assert ("none", "prune, tune") not in stages
    assert set(ORDERS) == {one.order for one in found if one.cell.method == "fedit"}


def test_tasks_of_one_model_are_told_apart(tmp_path: Path) -> None:
    names = [
        one.name
        for data in ("dolly.jsonl", "other.jsonl")
        for one in combinations_of(1, model="m", data=data, tunings=["none"])
    ]
    assert len(set(names)) == len(names)
    settings = [
        combinations_of(1, model="m", data=data, tunings=["none"])[0].cell.settings
        for data in ("dolly.jsonl", "x.json")
    ]
    assert ["data.held_out_category" in one for one in settings] == [True, False]


def test_lines_are_means_over_seeds() -> None:
    lines = {(one["order"], one["way"]): one for one in lines_of(ROWS)}
    assert lines["prune, tune", "rtn"]["loss"] == pytest.approx((0.21, 0.02 / 2**0.5))
    assert lines["tune", "gptaq"]["seeds"] == 1


def test_the_order_is_judged_in_pairs() -> None:
    found = {one["way"]: one for one in order_verdicts(ROWS)}
    assert found["rtn"]["mean"] == pytest.approx((0.05 + 0.09) / 2)
    assert found["rtn"]["error"] == pytest.approx(0.02)  # |.09 - .05| / 2, the standard error of two
    assert found["gptaq"]["mean"] == pytest.approx(0.01)
    assert {one["tuning"] for one in order_verdicts(ROWS)} == {"fedit"}


def test_the_page_has_a_table_a_map_and_the_order(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = page_of(ROWS, tmp_path, 4000)
    assert "| fedit | tune, prune | rtn | 0.2800 ± 0.0424 |" in text
    assert "| fedit | rtn | +0.0700 ± 0.0200 |" in text
    assert "0.120" in (tmp_path / "combinations-embedded.svg").read_text()


@pytest.mark.slow
def test_a_combination_runs_and_compresses_what_it_tuned(tmp_path: Path) -> None:
    (one,) = [
        one
        for one in combinations_of(1, tunings=["fedkseed"], ways=["float", "gptaq"], work=40)
        if one.order == "tune, prune"
    ]
    small = Combination(one.cell, one.order, one.ways)
    small.cell.settings.update({"data.records": 60, "data.held_out": 8, "data.calibration": 8})  # type: ignore[attr-defined]
    found = row_of(small, tmp_path)
    assert json.loads((tmp_path / "cell.json").read_text())["stages"] == ["base", "tune", "prune"]
    float_, gptaq = found["ways"]["float"], found["ways"]["gptaq"]
    assert gptaq["size_bytes"] < 0.6 * float_["size_bytes"]
    assert float_["kl"] < gptaq["kl"] < 0.1
    assert found["total_bytes"] > 0
