"""`edgetune split` writes the shares of the very recipe that its options say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import DataError, OutputError
from edgetune.data.reading import load_records
from edgetune.recipe.division import divide
from edgetune.recipe.open_settings import packaged_recipe
from edgetune.recipe.recipe import load_recipe


def test_options_and_the_packaged_recipe_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "split",
        str(tmp_path),
        "--method",
        "fedit",
        "--devices",
        "3",
        "--seed",
        "7",
        "--set",
        "data.records=60",
    ]
    assert execute(words) == 0
    settings = {"method__name": "fedit", "federation__devices": 3, "seed": 7, "data__records": 60}
    shares = divide(load_recipe(packaged_recipe("fedit"), [], **settings), split=True).shares
    for device, share in enumerate(shares):
        found = load_records(tmp_path / f"{device}.jsonl")
        assert [one.texts for one in found] == [one.texts for one in share]
    said = capsys.readouterr().out
    assert "60 on 3 devices" in said
    assert f"{tmp_path / '2.jsonl'}: {len(shares[2])} records" in said


def test_a_recipe_file_and_own_columns(tmp_path: Path) -> None:
    data, recipe = tmp_path / "own.jsonl", tmp_path / "recipe.toml"
    data.write_text(
        "".join(json.dumps({"x": f"q{n}", "y": f"a{n}"}) + "\n" for n in range(40)), encoding="utf-8"
    )
    recipe.write_text("[federation]\ndevices = 2\n[split]\nkind = 'iid'\n", encoding="utf-8")
    words = ["split", str(tmp_path / "out"), str(recipe), "--data", str(data)]
    assert execute([*words, "-q"]) == DataError.exit_code
    assert not (tmp_path / "out").exists()
    assert execute([*words, "-q", "--columns", "instruction=x,response=y"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0.jsonl", "1.jsonl"}


def test_a_folder_that_cannot_be_one_is_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert execute(["split", str(tmp_path / "file"), "--devices", "2"]) == OutputError.exit_code
