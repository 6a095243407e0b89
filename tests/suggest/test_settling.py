"""A run without a rate: found once, read from the cache, read from the log on a resume, never a mixed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.cli.app import execute
from edgetune.core.errors import DigestError
from edgetune.core.event_log import read_events
from edgetune.core.ledger import read_ledger
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method, tuning_names
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.recipe.open_settings import left_open, recipe_method
from edgetune.recipe.recipe import Recipe, load_recipe
from edgetune.tune import release

SMALL = [
    "--set", "data.held_out=6", "--set", "data.calibration=4", "--set", "method.local_steps=3",
    "--set", "method.batch_size=2", "--set", "evaluation.max_new_tokens=2", "--set", "evaluation.samples=0", "-q",
]  # fmt: skip


@pytest.fixture
def mine(save_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model and data of one's own, and an empty cache."""
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "mine.jsonl"
    lines = [
        {"instruction": f"say {index}", "context": "", "response": f"it is {index * 7}", "category": "c"}
        for index in range(40)
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    return ["--model", str(save_tiny("llama")), "--data", str(data), *SMALL]


def tuned(out: Path, mine: list[str], *more: str, method: str = "mezo") -> int:
    served = tuning_method(method).holds or tuning_method(method).survey is not None
    command = ["federate", method, "--set", "federation.devices=2"] if served else ["tune", method]
    return execute([*command, *mine, "--rounds", "1", *more, "--out", str(out)])


def rate_of(out: Path) -> dict[str, Any]:
    return [one for one in read_events(out / "events.jsonl") if one["event"] == "rate"][-1]


def numbers(out: Path) -> tuple[float, float]:
    found = rate_of(out)
    return found["learning_rate"], found["eps"]


def entries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "rates").glob("*.json"))


@pytest.mark.parametrize("method", [name for name in tuning_names() if not tuning_method(name).private])
def test_every_method_finds_its_rate_and_the_run_works_with_it(
    method: str, mine: list[str], tmp_path: Path
) -> None:
    at_once = ["--set", "method.variance_threshold=1e9"] if method == "fwdllm" else []
    assert tuned(tmp_path / "a", mine, *at_once, method=method) == 0
    found = rate_of(tmp_path / "a")
    config = next(read_events(tmp_path / "a" / "events.jsonl"))["config"]["method"]
    assert config["learning_rate"] == found["learning_rate"] > 0
    assert (found["eps"] is None) == (tuning_method(method).eps is None)
    assert found["origin"] == "test"


def test_the_second_run_reads_the_cache_and_is_the_same_run(mine: list[str], tmp_path: Path) -> None:
    assert tuned(tmp_path / "a", mine) == tuned(tmp_path / "b", mine) == 0
    assert rate_of(tmp_path / "b")["origin"] == "cache"
    digests = {read_ledger(tmp_path / one / "tuned.ledger").digest for one in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"learning_rate": -1}', b"\xff" * 9, b"[" * 9000, b"0" * 20_000, b"null"]
)
def test_a_damaged_entry_is_found_again(damage: bytes, mine: list[str], tmp_path: Path) -> None:
    assert tuned(tmp_path / "a", mine) == 0
    (entry,) = entries(tmp_path)
    whole = json.loads(entry.read_text())
    entry.write_bytes(damage)
    assert tuned(tmp_path / "b", mine) == 0
    assert rate_of(tmp_path / "b")["origin"] == "test"
    again = json.loads(entry.read_text())
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "file"))
    assert tuned(tmp_path / "a", mine) == 0


@pytest.mark.parametrize(
    "other",
    [["--seed", "1"], ["--rounds", "9"], ["--set", "method.batch_size=3"], ["--set", "model.dtype=bfloat16"]],
)
def test_another_run_is_another_entry(other: list[str], mine: list[str], tmp_path: Path) -> None:
    assert tuned(tmp_path / "a", mine) == 0
    assert tuned(tmp_path / "b", mine, *other, "--set", "model.accept_rounding=true") == 0
    assert len(entries(tmp_path)) == 2


def test_a_longer_run_without_a_cache_goes_on_with_the_values_of_its_first_start(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    assert tuned(out, mine) == 0
    first = numbers(out)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "other"))
    assert tuned(out, mine, "--rounds", "2") == 0
    assert rate_of(out)["origin"] == "log"
    assert numbers(out) == first
    given = ["--lr", str(first[0]), "--set", f"method.eps={first[1]}", "--rounds", "2"]
    assert tuned(tmp_path / "b", mine, *given) == 0
    assert read_ledger(out / "tuned.ledger").digest == read_ledger(tmp_path / "b" / "tuned.ledger").digest


def test_a_resume_with_another_rate_is_refused(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    assert tuned(out, mine) == 0
    assert tuned(out, mine, "--lr", "0.5", "--rounds", "2") == DigestError.exit_code
    (out / "events.jsonl").unlink()
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("edgetune.suggest.quick.CAUTION", 0.1)
    assert tuned(out, mine, "--rounds", "2") == DigestError.exit_code


def test_what_is_given_is_kept_and_only_the_other_is_found(mine: list[str], tmp_path: Path) -> None:
    assert tuned(tmp_path / "a", mine, "--lr", "1e-5") == 0
    assert numbers(tmp_path / "a")[0] == 1e-5
    assert tuned(tmp_path / "b", mine, "--set", "method.eps=0.004", "--lr", "auto") == 0
    assert numbers(tmp_path / "b")[1] == 0.004
    both = ["--lr", "1e-5", "--set", "method.eps=0.004"]
    assert tuned(tmp_path / "c", mine, *both) == 0
    assert not [one for one in read_events(tmp_path / "c" / "events.jsonl") if one["event"] == "rate"]


def test_workers_get_the_numbers(mine: list[str], tmp_path: Path) -> None:
    wide = ["--devices", "3", "--participation", "1", "--set", "split.minimum=2"]
    digests = set()
    for workers in (1, 2):
        out, count = tmp_path / str(workers), ["--set", f"federation.workers={workers}"]
        assert (
            execute(["federate", "fedkseed", *mine, *wide, *count, "--rounds", "2", "--out", str(out)]) == 0
        )
        digests.add(read_ledger(out / "tuned.ledger").digest)
    assert len(digests) == 1


@pytest.mark.parametrize("how", [["--model", "{}"], ["--set", "model.source={}"]])
def test_another_model_never_gets_the_embedded_models_numbers(
    how: list[str], mine: list[str], tmp_path: Path
) -> None:
    given = [word.format(mine[1]) for word in how]
    assert execute(["tune", "mezo", *given, *mine[2:], "--rounds", "1", "--out", str(tmp_path / "a")]) == 0
    config = next(read_events(tmp_path / "a" / "events.jsonl"))["config"]
    assert config["method"]["learning_rate"] != 2e-4
    assert rate_of(tmp_path / "a")["learning_rate"] == config["method"]["learning_rate"]


@pytest.mark.parametrize("method", tuning_names())
def test_the_embedded_model_has_numbers_of_its_own(method: str) -> None:
    recipe = load_recipe(None, method__name=method)
    assert left_open(recipe, recipe_method(recipe)) == ()
    other = load_recipe(None, method__name=method, model__source="somewhere")
    gradients = tuning_method(method).eps is None
    expected = ("learning_rate",) if gradients else ("learning_rate", "eps")
    assert left_open(other, recipe_method(other)) == expected


def test_logs_of_older_versions_say_null_for_auto() -> None:
    recipe = Recipe.model_validate({"method": {"learning_rate": None, "eps": None}})
    assert recipe.method.learning_rate == recipe.method.eps == "auto"


def test_a_rate_that_is_no_number_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["tune", "mezo", "--lr", "fast", "--out", str(tmp_path)]) == 2
    assert "method.learning_rate: " in capsys.readouterr().err


@pytest.mark.parametrize("method", tuning_names())
def test_a_handle_that_is_released_leaves_the_model_bit_by_bit(
    method: str, save_tiny: Callable[..., Path]
) -> None:
    backbone = load_backbone(save_tiny("llama"))
    names = {name: weight.detach().clone() for name, weight in backbone.model.named_parameters()}
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        before = backbone.model(ids).logits
    for _ in range(2):
        handle = Worker(backbone, with_options(tuning_method(method), {"batch_size": 2}), 0).tuned
        release(handle)
    assert {name for name, _ in backbone.model.named_parameters()} == set(names)
    assert all(torch.equal(weight, names[name]) for name, weight in backbone.model.named_parameters())
    with torch.no_grad():
        assert torch.equal(backbone.model(ids).logits, before)
