"""`compress --format onnx`: from the embedded model to a folder that ONNX Runtime predicts the same with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, OutputError, VerifyError
from edgetune.export.onnx_graph import LIBRARIES
from edgetune.export.onnx_runtime import OnnxDecoder
from edgetune.models.backbone import load_backbone
from edgetune.recipe.preflight import compression_of
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.run.onnx_folder import compress_to_onnx, plan_onnx

NEEDED = pytest.mark.skipif(
    any(importlib.util.find_spec(one) is None for one in LIBRARIES), reason="install edgetune[onnx]"
)
SMALL = {"data__records": 40, "data__held_out": 6, "data__calibration": 4, "federation__devices": 2}
SETS = [f"--set={name.replace('__', '.')}={value}" for name, value in SMALL.items()]


def prepared(**compression: Any) -> Prepared:
    known = {f"compression__{name}": value for name, value in compression.items()}
    recipe = load_recipe(None, **SMALL, model__source="embedded", data__source="embedded", **known)
    return prepare(recipe, split=False)


@NEEDED
def test_the_command_writes_a_folder_that_predicts_what_the_gguf_file_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "packed", tmp_path / "m.gguf"
    command = ["compress", "embedded", "--method", "rtn", *SETS]
    code = execute([*command, "--format", "onnx", "--out", str(folder)])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "29 matrices read back bit for bit, in ONNX Runtime within" in said.out
    names = {one.name for one in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert [one.name for one in tmp_path.iterdir()] == ["packed"]  # no solved blocks are left

    assert execute([*command, "--out", str(file)]) == 0
    ids = list(range(5, 60))
    model: Any = load_backbone(file).model
    theirs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert float((OnnxDecoder(folder / "model.onnx").log_probabilities(ids) - theirs).abs().max()) < 1e-4
    assert (folder / "model.onnx").stat().st_size < 1.25 * file.stat().st_size


@NEEDED
def test_a_folder_that_fails_its_check_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: Path, *_: object) -> None:
        raise VerifyError("another model", where=file)

    monkeypatch.setattr(
        "edgetune.run.onnx_folder.write_onnx", lambda model, quantised, file: file.write_bytes(b"x")
    )
    monkeypatch.setattr("edgetune.run.onnx_folder.compare_in_onnx", fails)
    given = prepared(name="rtn")
    with pytest.raises(VerifyError):
        compress_to_onnx(
            given.backbone.model, compression_of(given.recipe), tmp_path / "m", given, lambda event: None
        )
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"grid": "Q5_0"}, "no kernel for the grid Q5_0"), ({"size": "5bpw"}, "kept by grids of GGUF")],
)
def test_what_a_folder_cannot_hold_is_refused_before_anything_is_solved(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given = prepared(**settings)
    with pytest.raises(ConfigError, match=words):
        plan_onnx(given, compression_of(given.recipe), tmp_path)


def test_a_folder_with_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.run.onnx_folder.refuse_for_onnx", lambda model, grids: None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    given = prepared()
    with pytest.raises(OutputError, match=r"model\.safetensors of another model"):
        plan_onnx(given, compression_of(given.recipe), tmp_path)
