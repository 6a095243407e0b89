"""`compress --format pte`: from the embedded model to a folder that ExecuTorch predicts the same with."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, VerifyError
from edgetune.core.quantised import Q4_0
from edgetune.export.pte_runtime import PteDecoder
from edgetune.recipe.preflight import compression_of, needed_context
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.run.pte_folder import compress_to_pte, plan_pte

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="install edgetune[executorch] (make test-executorch)",
)
SMALL = {"data__records": 40, "data__held_out": 6, "data__calibration": 4, "federation__devices": 2}
SETS = [f"--set={name.replace('__', '.')}={value}" for name, value in SMALL.items()]


def prepared(**compression: Any) -> Prepared:
    known = {f"compression__{name}": value for name, value in compression.items()}
    recipe = load_recipe(None, **SMALL, model__source="embedded", data__source="embedded", **known)
    return prepare(recipe, split=False)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """ExecuTorch as far as plans look for it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: found("json" if name == "executorch" else name)
    )


@NEEDED
def test_the_command_writes_a_folder_with_a_program_its_words_and_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "device"
    command = ["compress", "embedded", "--method", "rtn", *SETS, "--format", "pte", "--context", "96"]
    code = execute([*command, "--out", str(folder)])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "29 matrices read back bit for bit, in ExecuTorch within" in said.out
    assert "activations of 8 bits cost KL" in said.out
    names = {one.name for one in folder.iterdir()}
    assert names == {
        "model.pte", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert [one.name for one in tmp_path.iterdir()] == ["device"]  # no solved blocks are left
    digest = hashlib.sha256((folder / "model.pte").read_bytes()).hexdigest()
    assert f"SHA-256 `{digest}`" in (folder / "README.md").read_text()
    base: Any = prepared().backbone.model
    floats = sum(4 * one.numel() for one in base.parameters())
    assert (folder / "model.pte").stat().st_size < 0.3 * floats

    ids = list(range(5, 101))
    (found,) = PteDecoder(folder / "model.pte").log_probabilities([ids])
    with torch.no_grad():
        before = base(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    assert float((before.exp() * (before - found)).sum(-1).mean()) < 0.2


@NEEDED
def test_a_folder_that_fails_its_check_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: Path, *_: object) -> None:
        raise VerifyError("another model", where=file)

    monkeypatch.setattr("edgetune.run.pte_folder.write_pte", lambda model, quantised, file, *_: file.touch())
    monkeypatch.setattr("edgetune.run.pte_folder.compare_in_executorch", fails)
    given = prepared(name="rtn")
    plan = plan_pte("pte", given, compression_of(given.recipe), tmp_path / "m", grid=False)
    with pytest.raises(VerifyError):
        compress_to_pte(given.backbone.model, plan, tmp_path / "m", given, lambda event: None)
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.usefixtures("there")
def test_grids_are_those_of_the_kernels_and_groups_have_their_scales_in_bf16(tmp_path: Path) -> None:
    usual, asked = prepared(), prepared(grid="int4-g64")
    for given, wanted in ((usual, "int4-g32-bf16"), (asked, "int4-g64-bf16")):
        plan = plan_pte("pte", given, compression_of(given.recipe), tmp_path, grid=given is asked)
        assert plan.method.grid is not None
        assert plan.method.grid.name == wanted
        assert plan.method.embeddings is not None
        assert plan.method.embeddings.name == "int8-row"
    plan = plan_pte("pte-exact", usual, compression_of(usual.recipe), tmp_path, grid=False)
    assert plan.method.grid == Q4_0


@pytest.mark.usefixtures("there")
def test_a_cache_holds_what_is_asked_or_what_the_data_need(tmp_path: Path) -> None:
    given = prepared()
    method = compression_of(given.recipe)

    def context(asked: int | None) -> int:
        return plan_pte("pte", given, method, tmp_path, grid=False, context=asked).said.context

    most = int(given.backbone.model.config.max_position_embeddings)
    assert context(None) == min(most, max(512, needed_context(given)))
    assert context(77) == 77
    for odd in (1, most + 1):
        with pytest.raises(ConfigError, match=f"a cache of {odd:,} tokens"):
            context(odd)
    plan = plan_pte("pte", given, method, tmp_path, grid=False)
    assert tuple(plan.said.ends) == given.ends
    assert plan.said.start == given.backbone.tokenizer.bos_token_id


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid": "Q5_0"}, "XNNPACK has no kernel for the grid Q5_0"),
        ({"size": "5bpw"}, "kept by grids of GGUF, not by pte"),
    ],
)
def test_what_a_program_cannot_hold_is_refused_before_anything_is_solved(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given = prepared(**settings)
    with pytest.raises(ConfigError, match=words):
        plan_pte("pte", given, compression_of(given.recipe), tmp_path, grid="grid" in settings)


def test_without_the_library_nothing_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "executorch" else found(name)
    )
    code = execute(["compress", "/no/such/model", "--format", "pte", "--out", str(tmp_path / "m")])
    assert code == 8
    assert "pip install 'edgetune[executorch]'" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_length_of_a_cache_is_refused_for_what_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = execute(["compress", "embedded", "--context", "64", "--out", str(tmp_path / "m.gguf")])
    assert code == 2
    assert "--format pte" in capsys.readouterr().err
