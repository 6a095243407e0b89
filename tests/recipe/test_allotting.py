"""A file keeps to the size that its recipe asks for, header and all; what no file can keep to is refused beforehand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError
from edgetune.core.gguf_read import read_gguf
from edgetune.recipe.allotting import allot, budget_of
from edgetune.recipe.preflight import compression_of, plan_for
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe

SMALL = {"data__records": 40, "data__held_out": 6, "data__calibration": 4, "federation__devices": 2}


def prepared(**settings: Any) -> Prepared:
    known = {f"compression__{name}": value for name, value in settings.items()}
    return prepare(load_recipe(None, **SMALL, compression__calibration_tokens=600, **known), split=False)


@pytest.mark.parametrize("size", ["4.6bpw", "700kB"])
def test_grids_are_allotted_within_the_size_and_the_model_is_as_it_was(size: str) -> None:
    given = prepared(name="rtn", size=size)
    model, method = given.backbone.model, compression_of(given.recipe)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plan = plan_for(given, method)
    budget = budget_of(given, plan, method)
    found = allot(model, method, given, plan)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert found.event is not None
    assert found.event.budget_bytes == budget
    assert found.event.grids == dict(Counter(grid.name for grid in found.grids.values()))
    assert len(found.event.grids) > 1
    assert budget is not None
    used = plan_for(given, method, found.grids).tensor_bytes
    assert 0.9 * budget < used < budget


def test_without_a_size_nothing_is_measured() -> None:
    given = prepared(name="optq")
    method = compression_of(given.recipe)
    found = allot(given.backbone.model, method, given, plan_for(given, method))
    assert (found.grids, found.event) == ({}, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "rtn", "size": "2.5bpw"}, "compression.size: the smallest file of this model has"),
        ({"name": "rtn", "size": "much"}, "compression.size: cannot read the size 'much'"),
        ({"name": "sparsegpt", "size": "4.5bpw"}, "sparsegpt: a size is kept by grids"),
    ],
)
def test_what_no_file_can_keep_to_is_refused_beforehand(settings: dict[str, Any], words: str) -> None:
    given = prepared(**settings)
    method = compression_of(given.recipe)
    with pytest.raises(ConfigError, match=words):
        budget_of(given, plan_for(given, method), method)


def test_the_command_writes_a_file_of_the_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    sets = [f"--set={name.replace('__', '.')}={value}" for name, value in SMALL.items()]
    code = execute(
        ["compress", "embedded", "--method", "rtn", "--size", "680kB", "--out", str(out), *sets,
         "--set=compression.calibration_tokens=600"]
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert 640_000 < out.stat().st_size <= 680_000
    assert "size: 680kB are 680,000 bytes; matrices:" in said.out
    assert len({tensor.kind for tensor in read_gguf(out).tensors}) > 2
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]  # no solved blocks are left
