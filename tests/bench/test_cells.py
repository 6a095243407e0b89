"""Tables of many runs: equal work, rows that stay, figures that follow from rows."""

from __future__ import annotations

import json
import statistics
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench import case_study, cells, federation, initialisers
from edgetune.bench.above import above_inference
from edgetune.bench.cells import Cell, run_cells
from edgetune.cli.tables import initialisers_table
from edgetune.core.errors import DataError
from edgetune.methods.catalogue import tuning_method, tuning_names
from edgetune.recipe.open_settings import packaged_recipe
from edgetune.recipe.recipe import load_recipe
from edgetune.report.curves import bars_of_error, curves
from edgetune.report.heat import Column, heat_map, shades_of
from edgetune.tune.targets import INITIALISERS

FEDERATED = [name for name in tuning_names() if name != "zo_sgd"]


def row(cell: Cell, loss: float = 1.0) -> dict[str, Any]:
    return {
        "cell": cell.name, "model": "embedded", "method": cell.method, "seed": cell.seed, **cell.told,
        "rounds": 2, "base_loss": 2.0, "loss": loss, "base_rouge_l": 10.0, "rouge_l": 20.0 + loss,
        "up": [[10, 12], [11, 11]], "down": [[100, 100], [40, 60]], "losses": [1.5, loss], "seconds": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", FEDERATED)
def test_every_federated_system_has_a_recipe_and_a_share_of_equal_work(name: str) -> None:
    path = packaged_recipe(name)
    assert path is not None
    assert load_recipe(path).method.name == name
    settings = federation.settings_of(name, "embedded", federation.WORK)
    steps = settings.get("method.local_steps", tuning_method(name).local_steps)
    batch = settings.get("method.batch_size", tuning_method(name).batch_size)
    passes = settings.get("method.directions_per_step", tuning_method(name).estimate.directions)
    assert int(str(settings["federation.rounds"])) * int(str(steps)) * int(str(batch)) * int(str(passes)) > 0
    found = federation.settings_of(name, "mine", federation.WORK)
    assert "method.learning_rate" not in found
    assert found["data.held_out_category"] == "summarization"


def test_rounds_follow_from_the_work() -> None:
    small, large = (federation.settings_of("fedkseed", "embedded", work) for work in (8_000, 80_000))
    assert (small["federation.rounds"], large["federation.rounds"]) == (10, 100)


def test_a_failed_run_stops_no_other_and_rows_that_are_done_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(cell: Cell, out: Path) -> dict[str, Any]:
        if cell.seed == 0 and len(ran) < 3:
            raise DataError("a run ended in exit 9", where=cell.name)
        ran.append(cell.name)
        return row(cell)

    monkeypatch.setattr(cells, "_run", run)
    wanted = [Cell("t", "embedded", "lora", seed, {}) for seed in (0, 1, 2)]
    rows, heard = tmp_path / "t.jsonl", list[str]()
    with pytest.raises(DataError, match=r"t-embedded-lora-0-44136fa3: 1 of 3 runs failed, .* exit 9"):
        run_cells(wanted, rows, tmp_path, jobs=1, told=lambda one: heard.append(one["cell"]))
    assert [json.loads(line)["seed"] for line in rows.read_text().splitlines()] == [1, 2]
    ran.append("later")
    found = run_cells(wanted, rows, tmp_path, jobs=1, told=lambda one: heard.append(one["cell"]))
    assert [one["seed"] for one in found] == [0, 1, 2]
    names = [f"t-embedded-lora-{seed}-44136fa3" for seed in range(3)]
    assert ran == [names[1], names[2], "later", names[0]]
    assert len(heard) == 3


def test_a_cells_command_says_all_that_it_sets() -> None:
    cell = Cell("t", "m/stories", "lora", 7, {"method.rank": 2, "split.kind": "iid"}, "d.jsonl", {"K": 4})
    assert cell.name == "t-stories-lora-K4-7-57a0633d"
    assert replace(cell, settings={"federation.rounds": 99}).name != cell.name  # another setting, another row
    assert cell.command == [
        "federate", "lora", "--model", "m/stories", "--data", "d.jsonl", "--quiet", "--set=seed=7", "--set=threads=1",
        "--set=federation.workers=1", "--set=method.rank=2", "--set=split.kind=iid",
    ]  # fmt: skip


def test_a_line_is_the_mean_of_its_rows() -> None:
    made = [row(Cell("t", "embedded", "lora", seed, {}), loss) for seed, loss in ((0, 1.0), (1, 2.0))]
    line = federation.line_of(made)
    assert line["loss"] == pytest.approx((1.5, 0.5**0.5))
    assert (line["up"], line["down_first"], line["down_later"], line["total"]) == (12, 100, 50, 344)


def test_the_case_study_is_the_published_one_and_its_proxy_says_so() -> None:
    study = case_study.PUBLISHED
    made = case_study.cells_of(study, "llama-1b", "dolly.jsonl", 3)
    assert len(made) == 3 * (5 + 7 - 1)
    assert {cell.settings["federation.devices"] for cell in made} == {200}
    first = made[0].settings
    assert (first["method.pool"], first["method.local_steps"], first["method.batch_size"]) == (700, 200, 1)
    assert (first["federation.participation"], first["method.learning_rate"]) == (0.05, 3e-7)
    assert len({cell.name for cell in made}) == len(made)


def test_the_figures_of_the_case_study_follow_from_the_rows() -> None:
    study = case_study.Study(4, 0.5, 2, 3, 16, (4, 16), alphas=(0.5, 2.0))
    made = [
        row(cell, 1.0 + cell.seed + (cell.told["K"] == 4))
        for cell in case_study.cells_of(study, "embedded", None, 2)
    ]
    lines = case_study.by_alpha(study, made)
    assert lines[2.0] == [(0, 2.0, 0.0), (1, 1.5, 0.0), (2, 1.5, pytest.approx(0.5**0.5))]
    assert case_study.by_size(study, made)[0] == (4, 22.5, pytest.approx(0.5**0.5))
    said = case_study.verdict(study, made)
    assert "lowest at K = 16 (1.5000) and highest at K = 4 (2.5000): 1.4 standard errors" in said


def test_shades_go_from_the_worst_to_the_best() -> None:
    less = Column("loss", "loss", str)
    assert shades_of([1.0, 3.0, 2.0, None], less) == [1.0, 0.0, 0.5, None]
    assert shades_of([1.0, 3.0], Column("r", "r", str, more=True)) == [0.0, 1.0]
    assert shades_of([10.0, 1000.0, 100.0], Column("b", "b", str, logarithmic=True)) == pytest.approx(
        [1, 0, 0.5]
    )
    assert shades_of([2.0, 2.0], less) == [1.0, 1.0]
    assert shades_of([float("nan")], less) == [None]


def test_figures_are_whole_pictures() -> None:
    pytest.importorskip("matplotlib")
    rows = {"lora": {"loss": 1.0, "up": 10.0}, "mezo": {"loss": 2.0, "up": None}}
    pictures = [
        heat_map("h", rows, (Column("loss", "loss", "{:.1f}".format), Column("up", "up", "{:.0f}".format))),
        curves("c", {"a": [(0, 1.0, 0.1), (1, 0.5, 0.1)]}, "round", "loss"),
        bars_of_error("e", [(4, 1.0, 0.1), (16, 2.0, 0.2)], "K", "Rouge-L"),
    ]
    for picture in pictures:
        named = picture.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1)
        assert ET.fromstring(named).tag.endswith("svg")
    assert all(word in pictures[0] for word in ("lora", "mezo", "1.0", "2.0"))


@pytest.mark.parametrize("name", ["dpzero", "fedselft", "fedpeptao"])
def test_the_memory_of_a_device_is_measured_with_its_noise_and_its_survey(name: str) -> None:
    if name == "dpzero":
        pytest.importorskip("dp_accounting", reason="the extra `privacy` is not installed")
    recipe = load_recipe(
        packaged_recipe(name),
        [
            "federation.rounds=2",
            "method.local_steps=2",
            "data.records=60",
            "data.held_out=8",
            "data.calibration=8",
        ],
    )
    found = above_inference(recipe)
    assert found["inference"] > 0
    assert found["above"] >= 0


def begun(name: str, alpha: float, seed: int, loss: float) -> dict[str, Any]:
    told = {"alpha": alpha, "initialiser": name}
    return row(Cell("t", "embedded", "fedit", seed, {}, None, told), loss)


def test_every_start_and_all_weights_do_equal_work_on_the_same_splits() -> None:
    made = initialisers.cells_of(2, work=4_800)
    assert len({cell.name for cell in made}) == len(made) == 3 * (1 + len(initialisers.NAMES)) * 2
    assert set(initialisers.NAMES) == set(INITIALISERS)
    work = set()
    for cell in made:
        method = tuning_method(cell.method)
        assert cell.settings.get("method.initialiser", "full") == cell.told["initialiser"]
        assert cell.settings["split.alpha"] == cell.told["alpha"]
        steps, batch = (int(str(cell.settings[f"method.{key}"])) for key in ("local_steps", "batch_size"))
        work.add(int(str(cell.settings["federation.rounds"])) * steps * batch * method.estimate.passes)
    assert work == {4_800}
    rates = {cell.told["initialiser"]: cell.settings["method.learning_rate"] for cell in made}
    assert rates == {"full": 3e-4} | dict.fromkeys(initialisers.NAMES, 3e-3) | initialisers.RATES
    assert not any("method.learning_rate" in cell.settings for cell in initialisers.cells_of(1, model="mine"))


def test_the_verdict_compares_seed_by_seed() -> None:
    full = [begun("full", 0.5, seed, loss) for seed, loss in enumerate((1.0, 2.0, 3.0))]
    near = [begun("pissa", 0.5, seed, loss) for seed, loss in enumerate((1.1, 1.9, 3.03))]
    worse = [begun("eva", 0.5, seed, loss) for seed, loss in enumerate((1.1, 2.1, 3.13))]
    mean, error = initialisers.behind([*full, *near], "pissa", 0.5)
    assert mean == pytest.approx(0.01)
    assert error == pytest.approx(statistics.stdev([0.1, -0.1, 0.03]) / 3**0.5)
    said = initialisers.verdict([*full, *near, *worse])
    assert "at alpha 0.5 pissa (pissa is closest, +0.0100" in said
    assert "eva" not in said
    assert "at alpha 0.5 none" in initialisers.verdict([*full, *worse])
    assert "nothing follows" in initialisers.verdict([full[0], near[0]])


def test_the_page_of_starts_is_written_from_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"full": 1.0, "default": 1.2, "pissa": 0.9}

    def run(cell: Cell, out: Path) -> dict[str, Any]:
        return row(cell, losses[str(cell.told["initialiser"])] + 0.01 * cell.seed)

    monkeypatch.setattr(cells, "_run", run)
    initialisers_table("embedded", None, ["default", "pissa"], 2, tmp_path, 1, 960)
    text = (tmp_path / "initialisers-embedded.md").read_text()
    assert "| pissa | 0.001 | 0.9050 ± 0.0071 | 0.9050 ± 0.0071 | 0.9050 ± 0.0071 | 12 | 100 |" in text
    assert "at alpha 0.1 pissa (pissa is closest, -0.1000" in text
    assert "| full | 0.0003 | 1.0050" in text
    assert len((tmp_path / "initialisers.jsonl").read_text().splitlines()) == 18
