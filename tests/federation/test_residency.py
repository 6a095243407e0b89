"""Where weights live changes memory, not what a run means: ledgers open again, rounded bases have their own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import edgetune
from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.ledger import Ledger, read_ledger
from edgetune.core.quantised import Q4_0, PackedTensor
from edgetune.core.update import Projected
from edgetune.federation.load import materialise
from edgetune.federation.residency import base_tensors, digest_of, pack_tensor
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.models.backbone import load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.recipe.residency import RESIDENCIES

RUN = [
    "--rounds",
    "1",
    "--devices",
    "4",
    "--participation",
    "0.5",
    "--set",
    "method.local_steps=2",
    "--quiet",
]
SMALL = ["--set", "data.records=80", "--set", "data.held_out=8", "--set", "data.calibration=8"]
ANSWERS = ["--set", "evaluation.max_new_tokens=8", "--set", "evaluation.samples=0"]


kinds = pytest.mark.parametrize("directions", ["hadamard", "rank_one_pool"])


def federated(out: Path, residency: str, directions: str = "hadamard") -> Ledger:
    options = [
        "--set",
        f"method.directions={directions}",
        "--residency",
        residency,
        "--set",
        "evaluation.max_new_tokens=8",
        "--set",
        "evaluation.samples=0",
    ]
    assert execute(["federate", "fedkseed", "--out", str(out), *RUN, *SMALL, *options]) == 0
    return read_ledger(out / "tuned.ledger")


@kinds
def test_a_streamed_run_is_the_fused_run(
    directions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused, streamed = (federated(tmp_path / name, name, directions) for name in ("fused", "streamed"))
    assert streamed.base_digest == fused.base_digest
    assert isinstance(streamed.update, Projected)
    assert isinstance(fused.update, Projected)
    assert streamed.update.coefficients == pytest.approx(fused.update.coefficients, rel=0.05, abs=1e-7)
    assert any(fused.update.coefficients)
    edgetune.load("embedded", tmp_path / "streamed" / "tuned.ledger")  # checks the recorded digest


@kinds
@pytest.mark.parametrize("grid", ["q8_0", "q4_0"])
def test_a_run_on_a_rounded_base(
    grid: str, directions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = federated(tmp_path, f"streamed-{grid}", directions)
    backbone = load_backbone("embedded")
    assert ledger.extra == {"base_grid": grid.upper()}
    assert ledger.base_digest != backbone.digest
    path = tmp_path / "tuned.ledger"
    model = edgetune.load("embedded", path)
    assert tensor_digest(model.named_parameters()) == ledger.weights_digest
    capsys.readouterr()
    assert execute(["evaluate", "embedded", "--ledger", str(path)]) == 0
    assert "Rouge-L" in capsys.readouterr().out
    assert (
        execute(["federate", "fedkseed", "--out", str(tmp_path), *RUN, *SMALL, *ANSWERS]) == 5
    )  # another residency


def test_an_unknown_grid_is_refused() -> None:
    ledger = Ledger(
        load_backbone("embedded").digest, "fedkseed", Projected.none(), extra={"base_grid": "Q3_K"}
    )
    with pytest.raises(ModelError, match="unknown grid"):
        materialise(load_backbone("embedded"), ledger)


def test_a_rounded_base_is_the_same_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    whole = pack_tensor(weight, Q4_0, "w")
    monkeypatch.setattr("edgetune.federation.residency.ROWS_AT_ONCE", 700)
    assert torch.equal(pack_tensor(weight, Q4_0, "w").blocks, whole.blocks)
    assert float((whole.dequantise() - weight).abs().max()) < 0.4


def test_matrices_are_packed_and_vectors_are_not() -> None:
    backbone = load_backbone("embedded")
    base = base_tensors(backbone, Q4_0)
    for name, weight in backbone.model.named_parameters():
        assert isinstance(base[name], PackedTensor) == (weight.dim() == 2)
        assert base[name].shape == tuple(weight.shape)
    assert digest_of(backbone, None) == backbone.digest
    assert len({digest_of(backbone, one.grid) for one in RESIDENCIES.values()}) == 3


@pytest.mark.parametrize(
    ("method", "options"),
    [("mezo", {}), ("zo_sgd", {}), ("lora", {}), ("fedkseed", {"directions": "gaussian"})],
)
def test_what_cannot_be_streamed(
    method: str, options: dict[str, object], save_tiny: Callable[..., Path]
) -> None:
    from edgetune.methods.options import with_options

    with pytest.raises(ConfigError) as caught:
        Worker(
            load_backbone(save_tiny()),
            with_options(tuning_method(method), options),
            0,
            RESIDENCIES["streamed"],
        )
    assert caught.value.where == "model.residency"


@pytest.mark.parametrize(
    ("residency", "directions", "said"),
    [
        ("streamed", "hadamard", "slopes along directions of full rank take"),
        ("streamed-q4_0", "rank_one_pool", "a base that is rounded here is tuned as a whole"),
    ],
)
@pytest.mark.parametrize("method", ["fedskip", "fedsubspace"])
def test_some_weights_are_streamed_along_a_pool_of_rank_one_over_a_base_as_it_is(
    method: str, residency: str, directions: str, said: str
) -> None:
    settings: dict[str, Any] = {"method__name": method, "method__directions": directions}
    recipe = load_recipe(None, [], **settings, model__residency=residency, model__source="nowhere/at/all")
    with pytest.raises(ConfigError, match=said):  # before the model is looked for
        prepare(recipe)


def test_derivatives_of_streamed_weights_are_refused_before_the_model_is_looked_for() -> None:
    settings: dict[str, Any] = {"method__name": "fedkseed", "method__estimate": "jvp"}
    recipe = load_recipe(
        None,
        [],
        **settings,
        model__residency="streamed",
        model__source="nowhere/at/all",
        method__directions="hadamard",
    )
    with pytest.raises(ConfigError, match="derivatives of weights that the model holds"):
        prepare(recipe)
