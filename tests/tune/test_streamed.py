"""Weights that are never stored: the same model as the materialised one, on float and packed bases."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.core.packing import pack
from edgetune.core.quantised import GRIDS, PackedTensor
from edgetune.core.update import Dense, Projected
from edgetune.directions import Hadamard, Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ProjectedTuned, StreamedTuned
from edgetune.updates import Sgd

KEY = pool_key(3)
STATE = Projected.of(3, 0.02) + Projected.of(40, -0.01)
FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
families = pytest.mark.parametrize("family", FAMILIES)
kernels = pytest.mark.parametrize("kernel", ["auto", "torch"])


def batch_of(records: int, length: int = 16) -> Batch:
    ids = torch.randint(1, 90, (records, length), generator=torch.Generator().manual_seed(records))
    return Batch(ids, torch.ones_like(ids), ids)


def stored(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def packed(weights: dict[str, torch.Tensor], grid: str) -> dict[str, Any]:
    """Matrices in blocks, vectors as they are."""
    found: dict[str, Any] = dict(weights)
    for name, weight in weights.items():
        if weight.dim() == 2:
            blocks = torch.from_numpy(pack(round_to_nearest(weight, GRIDS[grid], AbsMax()))).view(-1)
            found[name] = PackedTensor(GRIDS[grid], blocks, tuple(weight.shape))
    return found


def loss(tuned: ProjectedTuned, batch: Batch) -> float:
    with torch.no_grad():
        return float(response_loss(tuned.model, batch))


@families
@kernels
@pytest.mark.parametrize("records", [1, 3, 20], ids=["few rows", "some rows", "many rows"])
def test_the_same_losses_as_the_materialised_model(
    family: str, kernel: str, records: int, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model, space, batch = tiny_model(family), BoundSpace(Hadamard(64), KEY), batch_of(records)
    streamed = StreamedTuned(model, space, stored(model))
    fused = ProjectedTuned(tiny_model(family), space)
    for state in (None, STATE):
        fused.reset(state)
        streamed.reset(state)
        assert loss(streamed, batch) == pytest.approx(loss(fused, batch), abs=1e-5)
        scales = (0.02, -0.02)
        assert streamed.losses(response_loss, batch, 7, scales) == pytest.approx(
            fused.losses(response_loss, batch, 7, scales), abs=1e-5
        )
    for (name, one), (other_name, other) in zip(streamed.named_weights(), fused.named_weights(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


@pytest.mark.parametrize("grid", ["Q4_0", "Q4_1", "Q8_0"])
@kernels
def test_a_packed_base_is_the_base_it_unpacks_to(
    grid: str, kernel: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model, space = tiny_model("llama", hidden=64), BoundSpace(Hadamard(64), KEY)
    base = packed(stored(model), grid)
    plain = {name: one.dequantise() if isinstance(one, PackedTensor) else one for name, one in base.items()}
    streamed = StreamedTuned(model, space, base)
    fused = ProjectedTuned(tiny_model("llama", hidden=64), space, base=plain)
    for state in (None, STATE):
        fused.reset(state)
        streamed.reset(state)
        for (_, one), (_, other) in zip(streamed.named_weights(), fused.named_weights(), strict=True):
            assert torch.equal(one, other)
        for records in (1, 20):
            assert loss(streamed, batch_of(records)) == pytest.approx(
                loss(fused, batch_of(records)), abs=1e-5
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrow_base_is_summed_in_float32_and_rounded_once(dtype: torch.dtype, tiny_model: Any) -> None:
    model, space = tiny_model().to(dtype), BoundSpace(Hadamard(64), KEY)
    base = stored(model)
    streamed = StreamedTuned(model, space, base)
    streamed.reset(Projected.of(3, 1e-5))
    with streamed.perturbed(5, 2e-5):
        now = streamed.perturbation
        assert now is not None
        for name, weight in base.items():
            wide, got = weight.float(), torch.empty_like(weight)
            space.axpy(wide, wide, 1e-5, name, 3)
            space.axpy(wide, wide, 2e-5, name, 5)
            streamed.form(name, now)(got, 0)
            assert torch.equal(got, wide.to(dtype))
    assert torch.isfinite(torch.tensor(loss(streamed, batch_of(2))))


def test_a_base_of_doubles_is_read_in_parts_too(tiny_model: Any) -> None:
    model, space, batch = tiny_model(hidden=64, vocabulary=20_000), BoundSpace(Hadamard(64), KEY), batch_of(1)
    base = {name: weight.double() for name, weight in stored(model).items()}
    fused = ProjectedTuned(tiny_model(hidden=64, vocabulary=20_000), space)
    streamed = StreamedTuned(model, space, base)
    for tuned in (fused, streamed):
        tuned.reset(STATE)
    assert loss(streamed, batch) == pytest.approx(loss(fused, batch), abs=1e-5)


def test_steps_change_coefficients_only(tiny_model: Any) -> None:
    model, space, batch = tiny_model(), BoundSpace(Hadamard(64), KEY), batch_of(1)
    base = stored(model)
    streamed = StreamedTuned(model, space, base)
    fused = ProjectedTuned(tiny_model(), space)
    before = {name: weight.clone() for name, weight in base.items()}
    for key in (3, 3, 9):
        for tuned in (streamed, fused):
            Sgd(0.01).step(tuned, TwoPoint(1e-2)(tuned, response_loss, batch, key).update, {})
    assert streamed.state().keys.tolist() == [3, 9]
    assert streamed.state().coefficients.tolist() == pytest.approx(
        fused.state().coefficients.tolist(), rel=1e-3
    )
    assert loss(streamed, batch) == pytest.approx(loss(fused, batch), abs=1e-4)
    assert all(torch.equal(base[name], before[name]) for name in base)
    assert all(weight.untyped_storage().nbytes() <= 4 for weight in model.parameters())


def test_a_closed_handle_leaves_a_plain_model(tiny_model: Any) -> None:
    model, space, batch = tiny_model(), BoundSpace(Hadamard(64), KEY), batch_of(2)
    streamed = StreamedTuned(model, space, stored(model))
    streamed.reset(STATE)
    before = loss(streamed, batch)
    streamed.close()
    with torch.no_grad():
        assert float(response_loss(model, batch)) == pytest.approx(before, abs=1e-5)
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def test_what_is_refused(tiny_model: Any) -> None:
    model, space = tiny_model(), BoundSpace(Rademacher(), KEY)
    base = stored(model)
    name = next(iter(base))
    with pytest.raises(ModelError, match="whole base"):
        StreamedTuned(model, space, {key: value for key, value in base.items() if key != name})
    with pytest.raises(ModelError, match="dense"):
        StreamedTuned(model, space, base).apply(Dense({}))
