"""Slopes along a pool of rank one without a gradient of any matrix: those of the float path, over bases of any kind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.batch import IGNORED, Batch, response_loss
from edgetune.core.blank import blank_like, is_blank
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import pool_key
from edgetune.core.packing import pack
from edgetune.core.quantised import GRIDS, BaseTensor, CodedTensor, PackedTensor, values_of
from edgetune.core.update import Dense, Projected
from edgetune.directions import Hadamard, RankOnePool
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, SkipGradient, SkipSlopes
from edgetune.measure.allocator import allocator_peak
from edgetune.models.digest import tensor_digest
from edgetune.tune import Writers, plain_model, release
from edgetune.tune.folded_own import FoldedOwn

POOL = RankOnePool(200)
STATE = Projected.of(3, 0.02) + Projected.of(40, -0.01)
FAMILIES = ("llama", "llama, tied", "qwen2", "gpt2", "opt")
KINDS = ("floats", "halves", "codes", "Q4_0", "Q4_1", "Q8_0")


def space_of(kind: Any = POOL) -> BoundSpace:
    return BoundSpace(kind, pool_key(3), pooled=True)


def batch_of(records: int = 4) -> Batch:
    ids = torch.randint(1, 90, (records, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for row in range(records):
        labels[row, : 2 + row] = IGNORED
    return Batch(ids, torch.ones_like(ids), labels)


def made(family: str, tiny_model: Any) -> Any:
    model = tiny_model(family.split(",")[0], hidden=64)
    if "tied" in family:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def matrices(model: Any) -> set[str]:
    """Names of what may stay in a file; a table of positions that is a class of its own may not."""
    return {name for name, one in model.named_parameters() if one.dim() > 1 and "embed_positions" not in name}


def stored(model: Any, kind: str) -> dict[str, BaseTensor]:
    """A base: matrices of a kind, vectors in floats."""
    found: dict[str, BaseTensor] = {name: one.detach().clone() for name, one in model.named_parameters()}
    for name in matrices(model):
        weight = found[name]
        assert isinstance(weight, torch.Tensor)
        if kind == "halves":
            found[name] = weight.half()
        elif kind == "codes":
            found[name] = CodedTensor(tuple(weight.shape), lambda which, weight=weight: weight[which].clone())  # type: ignore[misc]
        elif kind in GRIDS:
            blocks = torch.from_numpy(pack(round_to_nearest(weight, GRIDS[kind], AbsMax()))).view(-1)
            found[name] = PackedTensor(GRIDS[kind], blocks, tuple(weight.shape))
    return found


def filled(model: Any, base: dict[str, BaseTensor]) -> Any:
    """The model that holds a base in floats."""
    for name, weight in model.named_parameters():
        weight.data = values_of(base[name], 0, weight.numel()).float().view(weight.shape).clone()
    return model


def emptied(model: Any) -> Any:
    """The model without its matrices."""
    found, names = copy.deepcopy(model), matrices(model)
    for name, weight in found.named_parameters():
        if name in names:
            weight.data = blank_like(weight.data)
    return found


def slopes(tuned: Any, batch: Batch) -> tuple[float, npt.NDArray[np.float32]]:
    found = SkipSlopes()(tuned, response_loss, batch, 5)
    assert isinstance(found.update, Projected)
    return found.loss, found.update.coefficients


def agree(one: Any, other: Any, batch: Batch) -> None:
    """Check that two handles see the same slopes."""
    (loss, found), (expected_loss, expected) = slopes(one, batch), slopes(other, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("head", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_are_those_of_the_model_in_floats(
    family: str, kind: str, head: bool, kernel: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model, target = made(family, tiny_model), Writers(head=head)
    base = stored(model, kind)
    streamed = target.stream(emptied(model), space_of(), base)
    dense = target.open(filled(copy.deepcopy(model), base), space_of(Hadamard(64)), 0)
    whole = target.open(filled(copy.deepcopy(model), base), None, 0)
    assert isinstance(streamed, FoldedOwn)
    assert dict(streamed.named_weights()).keys() == dict(dense.named_weights()).keys()
    # An oracle that knows no fold: a dense gradient, and every direction as a whole tensor.
    update = SkipGradient()(whole, response_loss, batch_of()).update
    assert isinstance(update, Dense)
    expected = [
        sum(float((direction[name] * one).sum()) for name, one in update.tensors.items())
        for direction in map(streamed.direction, range(POOL.size))
    ]
    _, found = slopes(streamed, batch_of())
    biggest = max(map(abs, expected))
    np.testing.assert_allclose(found * POOL.size, expected, atol=2e-5 * biggest)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["Q4_0", "codes"])
def test_so_they_are_after_steps(family: str, kind: str, tiny_model: Any) -> None:
    model = made(family, tiny_model)
    base = stored(model, kind)
    streamed = Writers().stream(emptied(model), space_of(), base)
    moved = dict(stored(filled(model, base), "floats"))
    for name, weight in streamed.named_weights():
        step = torch.zeros(weight.shape)
        space_of().replay(step, step, STATE, name)
        moved[name] = moved[name] + step  # type: ignore[operator]
    streamed.reset(STATE)
    agree(streamed, Writers().stream(emptied(model), space_of(), moved), batch_of())


def test_a_padding_row_gets_no_gradient_where_its_module_gives_it_none(tiny_model: Any) -> None:
    model, batch = made("qwen2", tiny_model), batch_of()
    base, before = stored(model, "floats"), slopes(
        Writers().stream(emptied(model), space_of(), stored(model, "floats")), batch
    )  # fmt: skip
    padding = int(batch.input_ids[0, 5])
    model.model.embed_tokens.padding_idx = padding
    update = SkipGradient()(Writers().open(copy.deepcopy(model), None, 0), response_loss, batch).update
    assert isinstance(update, Dense)
    tuned: Any = Writers().stream(emptied(model), space_of(), base)
    _, found = slopes(tuned, batch)
    expected = [
        sum(float((tuned.direction(key)[name] * one).sum()) for name, one in update.tensors.items())
        for key in range(5)
    ]
    np.testing.assert_allclose(found[:5] * POOL.size, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(found, before[1], rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_writes_is_found_without_matrices(family: str, tiny_model: Any) -> None:
    model = made(family, tiny_model)
    for head in (True, False):
        assert Writers(head=head).chosen(emptied(model)) == Writers(head=head).chosen(model)
    empty = emptied(model)
    Writers().chosen(empty)
    assert not any("forward" in vars(one) for one in empty.modules())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_chosen_matrices_move_and_no_others(family: str, tiny_model: Any) -> None:
    model = made(family, tiny_model)
    base, empty = stored(model, "Q8_0"), emptied(model)
    plain = filled(copy.deepcopy(model), base)
    adapter: Any = Writers().open(copy.deepcopy(plain), space_of(Hadamard(64)), 0).adapter()
    streamed = Writers().stream(empty, space_of(), base)
    assert streamed.adapter() == adapter
    assert all(is_blank(one) for name, one in empty.named_parameters() if name in matrices(model))
    streamed.reset(STATE)
    chosen = dict(streamed.named_weights())
    assert tensor_digest(chosen.items()) == tensor_digest(streamed.named_parts())  # type: ignore[attr-defined]
    loss = float(response_loss(streamed.model, batch_of()))
    release(streamed)
    assert {name for name, one in empty.named_parameters() if is_blank(one)} == matrices(model)
    streamed = Writers().stream(empty, space_of(), base)
    streamed.reset(STATE)
    tuned = plain_model(streamed)
    for (name, one), (_, before) in zip(tuned.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, chosen.get(name, before)), name
        assert (name in chosen) != torch.equal(one, before), name
    assert float(response_loss(tuned, batch_of())) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_batch(micro: int, tiny_model: Any) -> None:
    model = made("llama", tiny_model)
    tuned = Writers().stream(emptied(model), space_of(), stored(model, "Q4_1"))
    whole = SkipSlopes()(tuned, response_loss, batch_of(), 0).update
    parts = Accumulate(SkipSlopes(), micro)(tuned, response_loss, batch_of(), 0).update
    assert isinstance(whole, Projected)
    assert isinstance(parts, Projected)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=1e-3, atol=1e-7)


def test_a_step_keeps_a_few_numbers_a_token_and_forms_no_gradient_of_a_matrix(tiny_model: Any) -> None:
    ids = torch.randint(1, 90, (4, 64), generator=torch.Generator().manual_seed(0))
    batch, model = Batch(ids, torch.ones_like(ids), ids), tiny_model("llama", hidden=512)
    pool, base = RankOnePool(256), stored(model, "floats")
    folded: Any = Writers().stream(emptied(model), space_of(pool), base)
    adapted: Any = Writers().open(model, space_of(Hadamard(256)), 0)
    ours, theirs = (allocator_peak(lambda one=one: slopes(one, batch)) for one in (folded, adapted))  # type: ignore[misc]
    assert ours < theirs - 4 * 512 * 1024  # the gradient of one down_proj; what layers are given is more


@torch.no_grad()
def test_nothing_is_seen_outside_a_backward_pass(tiny_model: Any) -> None:
    model = made("llama", tiny_model)
    tuned: Any = Writers().stream(emptied(model), space_of(), stored(model, "Q4_0"))
    with torch.enable_grad():
        assert not response_loss(tuned.model, batch_of()).requires_grad
        with pytest.raises(RuntimeError, match="on the way"), tuned.slopes():
            raise RuntimeError("on the way")
        assert not response_loss(tuned.model, batch_of()).requires_grad
        with tuned.slopes() as found:
            pass
    assert not len(found().keys)


def test_what_is_refused(tiny_model: Any) -> None:
    model = made("llama", tiny_model)
    with pytest.raises(ConfigError, match="pool of rank one alone"):
        Writers().stream(emptied(model), space_of(Hadamard(64)), stored(model, "floats"))
    seen = space_of(Hadamard(64)).projection()
    with pytest.raises(ConfigError, match="take a gradient of every matrix"):
        seen.folded("w", (3, 4), torch.zeros(2, 4), columns=True)
    scaled = tiny_model("gemma", hidden=64)  # its table is a class of its own, and the head
    with pytest.raises(ModelError, match="does something of its own with its matrix") as caught:
        Writers().stream(copy.deepcopy(scaled), space_of(), stored(scaled, "floats"))
    assert caught.value.where == "model.embed_tokens.weight"
