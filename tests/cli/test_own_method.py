"""A method in a file of the user's own: found because it was named, known by its contents, executed by nobody else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, DigestError
from edgetune.core.gguf_read import read_metadata
from edgetune.core.ledger import read_ledger
from edgetune.federation.opening import opening_of, worker_of
from edgetune.methods.catalogue import tuning_method
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import load_recipe

SOURCE = '''
"""A method with a part of its own."""

from dataclasses import dataclass, replace
from pathlib import Path

from edgetune.methods.tuning.mezo import METHOD as MEZO
from edgetune.updates import Sgd

Path(__file__).with_suffix(".executed").touch()


@dataclass(frozen=True, slots=True)
class Signed(Sgd):
    """Sgd by another name."""


METHOD = replace(MEZO, name="signed", summary="MeZO with a part of its own.", local=Signed(lr=1e-4), local_steps=2)
'''
SMALL = [
    "--rounds", "1", "--set", "data.records=60", "--set", "data.held_out=4", "--set", "data.calibration=4",
    "--set", "data.max_tokens=64", "--set", "evaluation.max_new_tokens=2", "--set", "split.kind=iid", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "signed.py"
    path.write_text(SOURCE)
    return path


def test_the_digest_is_that_of_the_contents_wherever_they_lie(file: Path, tmp_path: Path) -> None:
    method = tuning_method(str(file))
    assert (method.name, method.local.lr, type(method.local).__name__) == ("signed", 1e-4, "Signed")
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "another_name.py"
    other.write_text(SOURCE)
    assert tuning_method(str(other)).digest == method.digest
    other.write_text(SOURCE + "# a remark\n")
    assert tuning_method(str(other)).digest != method.digest
    assert replace(method, origin="").digest != method.digest


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("METHOD = (", r"signed\.py:1: the method's file raised SyntaxError"),
        ("\n\n1 / 0\n", r"signed\.py:3: the method's file raised ZeroDivisionError: division by zero"),
        (
            "def f():\n    raise KeyError\n\n\nf()\n",
            r"signed\.py:2: the method's file raised KeyError: no message",
        ),
        ("import sys\nsys.exit(3)\n", r"signed\.py:2: the method's file raised SystemExit: 3"),
        (
            "import no_such_library\n",
            r"signed\.py:1: .*ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("x = 1\n", "defines no METHOD"),
        ("METHOD = 'mezo'\n", "METHOD is a str, but a TuningMethod"),
        (SOURCE.replace('"signed"', '"mezo"'), "'mezo' is a method of edgetune"),
        (SOURCE.replace('"signed"', '"../x"'), "called like a_name"),
        (SOURCE.replace("local_steps=2", "local_steps=0"), "at least one local step"),
    ],
)
def test_a_file_that_is_no_method_is_refused_with_its_line(
    source: str, what: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(source)
    with pytest.raises(ConfigError, match=what):
        tuning_method(str(file))
    assert execute(["methods", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["nothing.py", "folder.py", "text\0.py", "binary.py"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        tuning_method(str(tmp_path / name))


def test_the_card_of_a_file_is_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["methods", str(file), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["kind"], row["defaults"]["optimiser"]) == ("signed", "tuning", "Signed")
    assert (row["defaults"]["local_steps"], row["defaults"]["learning_rate"], row["packaged"]) == (
        2,
        "auto",
        {},
    )


def test_workers_take_the_same_file_and_refuse_a_changed_one(file: Path) -> None:
    small = [text for text in SMALL if "." in text and "=" in text]
    recipe = load_recipe(None, [*small, "federation.devices=3"], method__name=str(file))
    prepared = prepare(recipe)
    opening = opening_of(prepared, None)
    assert worker_of(opening).method.digest == prepared.method.digest
    file.write_text(SOURCE + "# changed\n")
    with pytest.raises(DigestError, match=r"signed\.py: the method is another than the run began with"):
        worker_of(opening)


def test_a_run_of_a_file_goes_on_only_with_the_same_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fleet = ["--devices", "3", "--participation", "1", "--set", "federation.workers=2", "--out", str(out)]
    assert execute(["federate", str(file), *SMALL, *fleet]) == 0, capsys.readouterr().err
    assert read_ledger(out / "tuned.ledger").method == "signed"
    file.write_text(SOURCE + "# changed\n")
    more = ["--rounds", "2"]
    assert execute(["federate", str(file), *SMALL, *fleet, *more]) == 5
    assert "another configuration" in capsys.readouterr().err
    file.write_text(SOURCE)
    assert execute(["federate", str(file), *SMALL, *fleet, *more]) == 0
    assert read_ledger(out / "tuned.ledger").round == 2


def test_run_takes_a_file_by_option(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "run",
        "--method",
        str(file),
        *SMALL,
        "--devices",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert execute([*command, "--set", 'stages=["base", "tune"]']) == 0, capsys.readouterr().err
    assert read_ledger(tmp_path / "out" / "tuned.ledger").method == "signed"


def test_nothing_is_executed_that_only_a_recipe_or_a_folder_names(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(f"{SOURCE}# of this test alone: a process executes the same bytes once\n")
    trace, out = file.with_suffix(".executed"), tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[method]\nname = "{file}"\n')
    assert execute(["run", str(recipe), "--out", str(out)]) == 2
    assert "names no Python file" in capsys.readouterr().err
    assert execute(["suggest", "mezo", str(recipe)]) == 2
    assert not trace.exists()
    assert execute(["tune", str(file), *SMALL, "--out", str(out)]) == 0
    assert trace.exists()
    trace.unlink()
    file.write_text(SOURCE + "# the same folder, but code that nobody named\n")
    ledger = ["--ledger", str(out / "tuned.ledger")]
    assert execute(["compress", "embedded", *ledger, "--out", str(tmp_path / "m.gguf")]) == 0
    assert execute(["evaluate", "embedded", *ledger]) == 0
    assert execute(["report", str(out)]) == 0
    assert not trace.exists()
    assert read_metadata(tmp_path / "m.gguf")["edgetune.method"] == "signed"
