"""What the informative commands print, and what the exported names are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgetune
from edgetune.cli.app import app, execute
from edgetune.cli.options import Asked
from edgetune.core.errors import ConfigError
from edgetune.directions import native
from edgetune.methods.catalogue import compression_names, tuning_names
from edgetune.recipe.recipe import Recipe


def test_methods_lists_every_method_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} == {*tuning_names(), *compression_names()}
    assert all(row[key] for row in rows for key in ("summary", "travels", "memory", "source"))


def test_one_method_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["methods", "mezo"]) == 0
    assert "arXiv:2305.17333" in capsys.readouterr().out
    assert execute(["methods", "mezzo"]) == 2
    assert "did you mean 'mezo'" in capsys.readouterr().err


def test_doctor_names_kernel_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kernel"].split()[0] in {"c", "torch"}
    assert facts["memory_bytes"] > 0
    assert set(facts["extras"]) >= {"peft", "gguf", "xllamacpp", "matplotlib"}


def test_a_run_without_the_kernel_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [
        "data.records=60",
        "data.held_out=4",
        "data.calibration=4",
        "method.local_steps=1",
        "method.pool=16",
    ]
    options = [option for key in (*small, "evaluation.samples=0") for option in ("--set", key)]
    command = [
        "federate",
        "fedkseed",
        "--devices",
        "2",
        "--rounds",
        "2",
        "--participation",
        "1",
        *options,
        "-q",
    ]
    for kernel, times in (("torch", 1), ("auto", 0 if native.library() else 1)):
        monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
        assert execute([*command, "--out", str(tmp_path / kernel)]) == 0
        assert capsys.readouterr().out.count("no compiled kernel") == times


def test_settings_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["settings"]) == 0
    assert "federation.rounds" in capsys.readouterr().out


@pytest.mark.parametrize("command", [group.callback.__name__ for group in app.registered_commands])  # type: ignore[union-attr]
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_public_names() -> None:
    assert {"Recipe", "Tuner", "TuningMethod", "load", "load_recipe", "run", "tuning_method"} < set(
        edgetune.__all__
    )
    assert all(callable(getattr(edgetune, name)) for name in set(edgetune.__all__) - {"__version__"})


def test_a_packaged_recipe_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(recipe: str) -> Recipe:
        return Asked(Path(recipe), [], {"data.source": "mine.jsonl"}, []).resolve()

    monkeypatch.chdir(tmp_path)
    found = asked("smollm2")
    assert (found.model.source, found.data.source) == ("smollm2", "mine.jsonl")
    (tmp_path / "smollm2").write_text("a file of that name comes first")
    for other in ("smollm2", "smollm3"):
        with pytest.raises(ConfigError):
            asked(other)
