"""Pruning as a stage: before tuning it makes the run's base, after it the tuned model gets smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from edgetune.core.errors import ConfigError, DataError, DigestError, ModelError
from edgetune.core.event_log import read_events
from edgetune.core.gguf_read import read_metadata
from edgetune.core.ledger import read_ledger
from edgetune.federation.load import load
from edgetune.models.backbone import load_backbone
from edgetune.models.licence import licence_of
from edgetune.recipe.recipe import load_recipe
from edgetune.report.summary import read_summary, to_json
from edgetune.report.table import print_result
from edgetune.run import pipeline
from edgetune.run.pruning import shape_of_pruned
from edgetune.run.stage import File, Model

SMALL = [
    "data.held_out=8", "data.calibration=16", "method.local_steps=4", "evaluation.max_new_tokens=8",
    "federation.rounds=2", "pruning.ratio=0.3", "threads=1",
]  # fmt: skip
FIRST = "stages=['base', 'prune', 'tune', 'round', 'compress', 'measure']"
LATER = "stages=['base', 'tune', 'prune', 'round', 'compress', 'measure']"


def run(out: Path, *overrides: str, **how: Any) -> Model | File:
    return pipeline.run(load_recipe(None, [*SMALL, *overrides]), out, command="x", **how)


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    return [one for one in read_events(out / "events.jsonl") if one["event"] == kind]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prune, recover, tune, quantise."""
    out = tmp_path_factory.mktemp("first")
    run(out, FIRST, "pruning.recover=distil", "pruning.steps=3")
    return out


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tune, prune, recover, quantise; layers of different widths."""
    out = tmp_path_factory.mktemp("later")
    run(out, LATER, "pruning.width=per_layer", "pruning.recover=lora", "pruning.steps=3")
    return out


def test_ledger_log_and_file_name_the_pruned_folder_as_their_base(first: Path) -> None:
    base, ledger = load_backbone(first / "pruned"), read_ledger(first / "tuned.ledger")
    (said,) = events(first, "pruned")
    assert ledger.base_digest == base.digest == said["base_digest"] != load_backbone("embedded").digest
    assert events(first, "run_started")[0]["base_digest"] == base.digest
    assert read_metadata(first / "model.gguf")["edgetune.base_digest"] == base.digest
    tuned = load(first / "pruned", first / "tuned.ledger")  # checks the weights against the ledger
    assert sum(one.numel() for one in tuned.parameters()) == said["weights"]
    assert AutoModelForCausalLM.from_pretrained(first / "pruned").config.intermediate_size < 512


@pytest.mark.parametrize(
    ("run_name", "names"),
    [
        ("first", ["base", "pruned", "tuned", "rounded", "compressed", "llama.cpp"]),
        ("later", ["base", "tuned", "pruned", "rounded", "compressed", "llama.cpp"]),
    ],
)
def test_the_table_has_a_row_and_the_file_computes_what_was_compressed(
    run_name: str, names: list[str], request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(run_name)
    rows = {one["name"]: one for one in events(out, "stage")}
    assert list(rows) == names
    assert rows["llama.cpp"]["loss"] == pytest.approx(rows["compressed"]["loss"], abs=0.02)
    assert rows["pruned"]["loss"] == pytest.approx(events(out, "pruned")[0]["loss"]["recovered"], rel=1e-2)


def test_the_dense_base_is_what_the_first_row_measures(first: Path, later: Path) -> None:
    one, other = (events(out, "stage")[0] for out in (first, later))
    assert one["loss"] == other["loss"]
    assert [events(out, "run_started")[0]["licence"] for out in (first, later)] == 2 * [
        licence_of(load_backbone("embedded").folder)
    ]
    assert one["size_bytes"] == other["size_bytes"] > events(first, "stage")[1]["size_bytes"]


def test_a_tuned_model_is_pruned_away_from_its_base_and_its_ledger_stays(later: Path) -> None:
    (said,) = events(later, "pruned")
    dense = load_backbone("embedded")
    assert read_ledger(later / "tuned.ledger").base_digest == dense.digest
    assert said["base_digest"] == ""
    assert said["weights_before"] == sum(one.numel() for one in dense.model.parameters()) > said["weights"]
    assert list(said["kl"]) == ["pruned", "compensated", "recovered"]
    assert 0 < said["kl"]["compensated"] < said["kl"]["pruned"]
    assert not (later / "pruned").exists()
    assert read_metadata(later / "model.gguf")["general.architecture"] == "deci"


def test_a_run_that_goes_on_takes_its_pruned_base_up_and_ends_with_the_same_ledger(
    first: Path, tmp_path: Path
) -> None:
    more = ("stages=['base', 'prune', 'tune']", "pruning.recover=distil", "pruning.steps=3")
    run(tmp_path, *more, "federation.rounds=1")
    weights = tmp_path / "pruned/model.safetensors"
    before = weights.stat().st_mtime_ns
    run(tmp_path, *more)
    assert weights.stat().st_mtime_ns == before
    assert [one["round"] for one in events(tmp_path, "run_resumed")] == [1]
    assert len(events(tmp_path, "pruned")) == 2
    assert read_ledger(tmp_path / "tuned.ledger").digest == read_ledger(first / "tuned.ledger").digest
    with pytest.raises(DigestError, match="pruned otherwise"):
        run(tmp_path, *more, "pruning.ratio=0.2")
    assert weights.stat().st_mtime_ns == before
    weights.write_bytes(weights.read_bytes()[:-2] + b"\0\0")  # not what the mark says: made again
    run(tmp_path, *more)
    assert load_backbone(tmp_path / "pruned").digest == load_backbone(first / "pruned").digest


def test_what_is_left_without_a_file_is_a_folder(tmp_path: Path) -> None:
    found = run(tmp_path, "stages=['prune']", "pruning.width=modules", "pruning.compensate=false")
    assert isinstance(found, Model)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        loaded = load_backbone(tmp_path / "pruned").model(ids).logits
        assert torch.equal(loaded, found.model(ids).logits)
    assert [one["name"] for one in events(tmp_path, "stage")] == ["pruned"]


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["stages=['base', 'round', 'prune', 'compress']"], ConfigError, "put 'prune' before 'round'"),
        (["stages=['tune', 'prune']", "method.name=mezo_prefix"], ConfigError, "cannot be merged"),
        ([FIRST, "pruning.spare=[1, 1]"], ConfigError, "per_layer"),
        ([FIRST, "pruning.width=modules", "pruning.ratio=0.01"], ModelError, "larger --ratio"),
        ([FIRST, "pruning.width=per_layer", "pruning.spare=[3, 3]"], ConfigError, "cannot be left alone"),
        ([FIRST, "compression.calibration=no such.txt"], DataError, "no such"),
        ([FIRST, "compression.size=1kB"], ConfigError, "smallest file of this model"),
    ],
)
def test_what_could_not_be_pruned_is_refused_before_the_run(
    overrides: list[str], error: type[Exception], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(error, match=said):
        run(out, *overrides)
    assert not out.exists()


def test_devices_on_other_hosts_have_no_pruned_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hold the base as it is"):
        run(tmp_path, FIRST, elsewhere=object())


@pytest.mark.parametrize("width", ["uniform", "per_layer", "modules"])
def test_the_shape_that_is_planned_has_no_values_and_of_a_uniform_width_is_exact(
    width: str, tmp_path: Path
) -> None:
    section = load_recipe(None, [*SMALL, f"pruning.width={width}"]).pruning
    shape = shape_of_pruned(load_backbone("embedded").model, section)
    assert {one.device.type for one in shape.parameters()} == {"meta"}
    run(tmp_path, "stages=['prune']", f"pruning.width={width}", "pruning.compensate=false")
    made = load_backbone(tmp_path / "pruned").model
    if width == "uniform":
        shapes = {name: one.shape for name, one in made.named_parameters()}
        assert shapes == {name: one.shape for name, one in shape.named_parameters()}
    if width == "modules":
        assert hasattr(shape.config, "layer_widths")


def test_pruning_decides_the_tuned_weights_only_where_it_comes_first() -> None:
    def prints(stages: str) -> set[str]:
        sections = ([], ["pruning.ratio=0.4"])
        return {load_recipe(None, [stages, *more]).tuning_fingerprint for more in sections}

    assert len(prints(FIRST)) == 2
    assert prints(LATER) == {load_recipe(None).tuning_fingerprint}


def test_curves_begin_with_the_model_that_was_tuned(first: Path, later: Path) -> None:
    for out, name in ((first, "pruned"), (later, "base")):
        begun = read_summary(out).tuned_from
        assert begun is not None
        assert begun.name == name


def test_the_summary_says_what_was_pruned(first: Path) -> None:
    content = json.loads(json.dumps(to_json(read_summary(first))))
    assert content["pruned"]["recover"] == "distil"
    assert set(content["pruned"]["kl"]) == {"pruned", "compensated", "recovered"}
    console = Console(record=True, width=200)
    print_result(console, read_summary(first))
    assert "importance activation" in console.export_text()
