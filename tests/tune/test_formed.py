"""Handles over a base that their model does not hold: the same model, and none of its matrices in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch, response_losses
from edgetune.core.blank import blank, blank_like, is_blank
from edgetune.core.errors import ModelError
from edgetune.core.in_parts import InParts
from edgetune.core.keys import pool_key
from edgetune.core.quantised import BaseTensor, CodedTensor
from edgetune.core.update import Projected
from edgetune.directions import Hadamard, RankOnePool
from edgetune.directions.space import BoundSpace
from edgetune.measure.realised import sample_weights
from edgetune.models.digest import tensor_digest
from edgetune.tune import parts_of, release, streamed
from edgetune.tune.formed import FormedTuned

STATE = Projected.of(3, 0.02) + Projected.of(40, -0.01)
kinds = pytest.mark.parametrize("kind", [Hadamard(64), RankOnePool(64)], ids=["hadamard", "rank one"])
kernels = pytest.mark.parametrize("kernel", ["auto", "torch"])


def batch_of(records: int = 2) -> Batch:
    ids = torch.randint(1, 90, (records, 16), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids), ids)


def floats_of(model: Any) -> dict[str, BaseTensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def emptied(model: Any) -> Any:
    """The model without its matrices."""
    found = copy.deepcopy(model)
    for weight in found.parameters():
        if weight.dim() > 1:
            weight.data = blank_like(weight.data)
    return found


def coded(weight: torch.Tensor) -> CodedTensor:
    """A matrix whose rows are asked for."""
    return CodedTensor(tuple(weight.shape), lambda which: weight[which].clone())


STORED: dict[str, Callable[[torch.Tensor], BaseTensor]] = {
    "floats": lambda weight: weight,
    "halves": lambda weight: weight.half(),
    "codes": coded,
}


def over(model: Any, base: dict[str, BaseTensor], kind: Any) -> FormedTuned:
    tuned = streamed(model, BoundSpace(kind, pool_key(3), pooled=True), base)
    assert isinstance(tuned, FormedTuned)
    return tuned


@kinds
@kernels
@pytest.mark.parametrize("stored", STORED)
@torch.no_grad()
def test_a_model_without_its_matrices_computes_as_one_that_holds_them(
    stored: str, kernel: str, kind: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model = tiny_model()
    for weight in model.parameters():
        weight.data = weight.half().float()
    floats = floats_of(model)
    base = {name: STORED[stored](one) if one.dim() > 1 else one for name, one in floats.items()}  # type: ignore[union-attr, arg-type]
    hollow = emptied(model)
    with_them, without = over(model, floats, kind), over(hollow, base, kind)
    for state in (Projected.none(), STATE):
        ours, theirs = [], []
        for tuned, found in ((without, ours), (with_them, theirs)):
            tuned.reset(state)
            found += list(tuned.record_losses(response_losses, batch_of(), 5, (1e-2, -1e-2))[0])
            found.append(response_losses(tuned.model, batch_of(20))[0])
        assert all(torch.allclose(one, two, rtol=1e-5) for one, two in zip(ours, theirs, strict=True))
    assert tensor_digest(without.named_weights()) == tensor_digest(with_them.named_weights())
    without.close()
    expected = dict(with_them.named_weights())
    assert all(torch.equal(one, expected[name]) for name, one in hollow.named_parameters())


@kinds
@torch.no_grad()
def test_a_released_model_is_as_it_was_opened(kind: Any, tiny_model: Any) -> None:
    model = tiny_model()
    base, hollow = floats_of(model), emptied(model)
    for _ in range(2):  # a handle after the other
        tuned = over(hollow, base, kind)
        tuned.reset(STATE)
        release(tuned)
        for name, weight in hollow.named_parameters():
            assert is_blank(weight) == (weight.dim() > 1)
            assert weight.dim() > 1 or torch.equal(weight, base[name])  # type: ignore[arg-type]
    held = over(model, base, kind)
    held.reset(STATE)
    release(held)
    assert all(torch.equal(one, base[name]) for name, one in model.named_parameters())  # type: ignore[arg-type]


@kinds
@kernels
def test_weights_in_parts_are_the_weights(
    kind: Any, kernel: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model = tiny_model()
    model.resize_token_embeddings(400)
    tuned = over(model, floats_of(model), kind)
    tuned.reset(STATE)
    monkeypatch.setattr("edgetune.tune.formed.FORMED_PART", 1 << 10)
    whole, found = dict(tuned.named_weights()), dict(parts_of(tuned))
    counts = []
    for name, weight in whole.items():
        parts = found[name]
        assert isinstance(parts, InParts)
        assert (parts.shape, parts.dtype, parts.numel()) == (weight.shape, weight.dtype, weight.numel())
        pieces = [one.clone() for one in parts.parts()]
        counts.append(len(pieces))
        assert torch.equal(torch.cat([one.view(-1) for one in pieces]).view(weight.shape), weight)
        for count in (1, weight.numel() - 1, weight.numel()):
            assert torch.equal(parts.first(count), weight.view(-1)[:count])
    if isinstance(kind, RankOnePool) or kernel == "auto":
        assert max(counts) > 1
    assert tensor_digest(found.items()) == tensor_digest(whole.items())
    samples = (sample_weights(weights.items(), 1000) for weights in (found, whole))
    for one, other in zip(*samples, strict=True):
        assert (one.name, one.share) == (other.name, other.share)
        assert torch.equal(one.values, other.values)


@kinds
def test_a_matrix_that_another_module_reads_itself_is_refused(kind: Any, tiny_model: Any) -> None:
    model = tiny_model()
    base, hollow = floats_of(model), emptied(model)
    layer = hollow.model.layers[0].mlp
    up = layer.up_proj.weight
    layer.forward = lambda x: layer.down_proj(nn.functional.linear(x, up))
    with pytest.raises(ModelError, match="reads parameters of another one itself"):
        over(hollow, base, kind)


def test_what_is_blank() -> None:
    for shape in ((3, 5), (1, 4), (4, 1), (2, 3, 4)):
        made = blank(shape, torch.float16)
        assert (tuple(made.shape), made.dtype) == (shape, torch.float16)
        assert made.untyped_storage().nbytes() == 2
        assert is_blank(made)
        assert bool(made.isnan().all())
        assert not is_blank(torch.zeros(shape))
    assert not is_blank(torch.zeros(1))
    assert bool(nn.functional.linear(torch.ones(1, 3), blank((2, 3))).isnan().all())
