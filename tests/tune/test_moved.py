"""Directions of rank one move activations: the losses of perturbed weights, on any base, and no weight is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.batch import Batch, response_loss, response_losses
from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.core.packing import pack
from edgetune.core.quantised import GRIDS, PackedTensor
from edgetune.core.update import Dense, Projected
from edgetune.directions import RankOne, RankOnePool
from edgetune.directions.kept import KeptSpace
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.measure.allocator import allocator_peak
from edgetune.models.quiet import quiet
from edgetune.tune import FoldedTuned, ProjectedTuned, StackedTuned, projected
from edgetune.updates import Sgd

KEY = pool_key(3)
KINDS = (RankOne(), RankOnePool(64), RankOnePool(500))
STATE = Projected(np.array([3, 40, 9], np.int64), np.array([0.02, -0.01, 0.03], np.float32))
FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
EXPERTS = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 48, "num_local_experts": 4, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip


def batch_of(records: int = 3, length: int = 12) -> Batch:
    ids = torch.randint(1, 90, (records, length), generator=torch.Generator().manual_seed(records))
    labels = ids.clone()
    labels[:, : length // 3] = -100
    return Batch(ids, torch.ones_like(ids), labels)


def handles(model: Any, kind: Any, **options: Any) -> tuple[ProjectedTuned, StackedTuned]:
    """The handle that forms weights, and the one that moves activations."""
    formed = ProjectedTuned(copy.deepcopy(model), BoundSpace(kind, KEY), **options)
    moved = projected(copy.deepcopy(model), BoundSpace(kind, KEY), **options)
    assert isinstance(moved, StackedTuned)
    return formed, moved


def folded(model: Any, base: Any = None) -> FoldedTuned:
    space = BoundSpace(RankOnePool(64), KEY)
    moves = space.moves({})
    assert moves is not None
    return FoldedTuned(model, space, moves, base)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """To float32 rounding: what a perturbation moves is hundreds of times more."""
    return bool(torch.allclose(ours, theirs, rtol=2e-5, atol=2e-4))


@families
@kinds
@torch.no_grad()
def test_the_losses_of_perturbed_weights_before_and_after_steps(
    family: str, kind: Any, tiny_model: Any
) -> None:
    formed, moved = handles(tiny_model(family), kind)
    assert moved.inspect()
    batch = batch_of()
    for state in (Projected.none(), STATE):
        formed.reset(state)
        moved.reset(state)
        for seed, scales in ((3, (1e-2, -1e-2)), (7, (0.0, 1e-2)), (9, (2e-2,))):
            expected, counts = formed.record_losses(response_losses, batch, seed, scales)
            found, same = moved.record_losses(response_losses, batch, seed, scales)
            assert close(found, expected)
            assert torch.equal(counts, same)
            assert len(scales) == 1 or float((expected[0] - expected[1]).abs().min()) > 2e-3
        with moved.perturbed(5, 1e-2), formed.perturbed(5, 1e-2):
            assert close(response_loss(moved.model, batch), response_loss(formed.model, batch))
        assert close(response_loss(moved.model, batch), response_loss(formed.model, batch))


@kinds
@torch.no_grad()
def test_every_point_and_every_record_may_have_a_direction_of_its_own(kind: Any, tiny_model: Any) -> None:
    formed, moved = handles(tiny_model(), kind)
    batch, points = batch_of(), [(1, 1e-2), (2, -1e-2), (1, 0.0), (30, 2e-2)]
    expected = [formed.record_losses(response_losses, batch, seed, (scale,))[0] for seed, scale in points]
    assert close(moved.line_losses(batch, points)[0], torch.cat(expected))
    seeds, scales = [4, 5, 6], (1e-2, -1e-2)
    alone = [
        formed.record_losses(response_losses, one, seed, scales)[0]
        for one, seed in zip(batch.split(1), seeds, strict=True)
    ]
    found, counts = moved.own_line_losses(batch, seeds, scales)
    assert close(found, torch.cat(alone, 1))
    assert counts.tolist() == [8, 8, 8]


@pytest.mark.parametrize("tokens", [1, 30, 40, 10**6])
@torch.no_grad()
def test_points_share_forward_passes_as_far_as_the_tokens_allow(
    tokens: int, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, moved = handles(tiny_model(), RankOnePool(64))
    batch, points = batch_of(1, 10), [(seed, 1e-2) for seed in range(5)]
    expected, own = moved.line_losses(batch, points)[0], moved.own_line_losses(batch, [8], (1e-2, -1e-2))[0]
    monkeypatch.setattr("edgetune.tune.stacked.TOGETHER", tokens)
    walked: list[int] = []
    model = moved.model.forward
    monkeypatch.setattr(
        moved.model, "forward", lambda *a, **k: walked.append(len(k["input_ids"])) or model(*a, **k)
    )
    assert close(moved.line_losses(batch, points)[0], expected)
    assert walked == {1: [1] * 5, 30: [3, 2], 40: [4, 1], 10**6: [5]}[tokens]
    assert close(moved.own_line_losses(batch, [8], (1e-2, -1e-2))[0], own)


@kinds
@torch.no_grad()
def test_experts_and_routers_are_moved_too(kind: Any) -> None:
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **EXPERTS))
    formed, moved = handles(model.float().eval().requires_grad_(False), kind)
    formed.reset(STATE)
    moved.reset(STATE)
    batch = batch_of()
    expected = formed.record_losses(response_losses, batch, 3, (1e-3, -1e-3))[0]
    assert close(moved.record_losses(response_losses, batch, 3, (1e-3, -1e-3))[0], expected)


@kinds
def test_layer_wise_factors_scale_perturbations_and_steps(kind: Any, tiny_model: Any) -> None:
    model = tiny_model()
    scales = {name: 0.5 + index % 3 for index, (name, _) in enumerate(model.named_parameters())}
    formed, moved = handles(model, kind, scales=scales)
    for one in (formed, moved):
        one.reset(STATE)
    assert close(
        *(one.record_losses(response_losses, batch_of(), 3, (1e-2, -1e-2))[0] for one in (moved, formed))
    )
    for (_, ours), (_, theirs) in zip(moved.named_weights(), formed.named_weights(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)


@kinds
def test_weights_are_rebuilt_to_the_bits_of_a_replay(kind: Any, tiny_model: Any) -> None:
    formed, moved = handles(tiny_model(), kind)
    for one in (formed, moved):
        one.reset(STATE)
    expected = dict(formed.named_weights())
    assert all(torch.equal(weight, expected[name]) for name, weight in moved.named_weights())
    assert moved.state().sorted().equals(formed.state().sorted())
    moved.close()
    assert all(torch.equal(weight, expected[name]) for name, weight in moved.model.named_parameters())
    batch = batch_of()
    assert close(response_loss(moved.model, batch), response_loss(formed.model, batch))


def test_a_pool_never_writes_to_its_base(tiny_model: Any) -> None:
    """Read-only pages would end the process at the first write."""
    model = tiny_model()
    base = {name: one.detach().clone() for name, one in model.named_parameters()}
    copies = {name: one.clone() for name, one in base.items()}
    tuned, batch = folded(model, base), batch_of()
    assert all(one.data_ptr() == base[name].data_ptr() for name, one in model.named_parameters())
    before = float(response_loss(tuned.model, batch))
    for key in range(20):
        Sgd(1e-4).step(tuned, TwoPoint(1e-3)(tuned, response_loss, batch, key).update, {})
    assert float(response_loss(tuned.model, batch)) < before
    assert all(torch.equal(one, copies[name]) for name, one in base.items())
    tuned.reset(None)
    assert close(response_loss(tuned.model, batch), torch.tensor(before))


def test_a_step_needs_the_activations_of_twice_the_batch_and_little_more(tiny_model: Any) -> None:
    """Signs of rows and columns are drawn before; what a step adds to them is the folded rows of a layer."""
    tuned, plain, ids = folded(tiny_model()), tiny_model(), batch_of(2, 40).input_ids
    batch, twice = (Batch(one, torch.ones_like(one), one) for one in (ids, torch.cat([ids, ids])))

    def step() -> None:
        Sgd(1e-6).step(tuned, TwoPoint(1e-3)(tuned, response_loss, batch, 7).update, {})

    def forward() -> None:
        with torch.no_grad():
            response_loss(plain, twice)

    step()
    forward()
    largest = twice.input_ids.numel() * 100 * 4  # the logits
    assert allocator_peak(step) < allocator_peak(forward) + largest / 2


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_narrow_types_round_an_output_once(kind: Any, dtype: torch.dtype, tiny_model: Any) -> None:
    model = tiny_model()
    exact = projected(copy.deepcopy(model), BoundSpace(kind, KEY))
    narrow = projected(model.to(dtype), BoundSpace(kind, KEY))
    for one in (exact, narrow):
        one.reset(STATE)
    ours, theirs = (
        one.record_losses(response_losses, batch_of(), 3, (0.05, -0.05))[0] for one in (narrow, exact)
    )
    assert torch.allclose(ours, theirs, rtol=0.02)
    assert all(weight.dtype == dtype for _, weight in narrow.named_weights())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("grid", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("records", [1, 20])
@torch.no_grad()
def test_a_packed_base_is_the_base_it_unpacks_to(
    family: str, grid: str, kernel: str, records: int, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    model = tiny_model(family)
    blocks: dict[str, Any] = {name: one.detach().clone() for name, one in model.named_parameters()}
    for name, weight in blocks.items():
        if weight.dim() == 2:
            raw = torch.from_numpy(pack(round_to_nearest(weight, GRIDS[grid], AbsMax()))).view(-1)
            blocks[name] = PackedTensor(GRIDS[grid], raw, tuple(weight.shape))
    floats = {
        name: one.dequantise() if isinstance(one, PackedTensor) else one for name, one in blocks.items()
    }
    packed, plain = (folded(copy.deepcopy(model), base) for base in (blocks, floats))
    for one in (packed, plain):
        one.reset(STATE)
    batch = batch_of(records)
    ours, theirs = (one.record_losses(response_losses, batch, 3, (1e-2, -1e-2))[0] for one in (packed, plain))
    assert close(ours, theirs)
    held = dict(packed.model.named_parameters())
    inside = [name for name, one in blocks.items() if isinstance(one, PackedTensor)]
    assert len(inside) > 6
    assert all(held[name].untyped_storage().nbytes() < 16 for name in inside)
    for (_, one), (_, other) in zip(packed.named_weights(), plain.named_weights(), strict=True):
        assert torch.equal(one, other)


class Halves(nn.Module):
    """A linear layer that holds its matrix in a form of its own: whole numbers and a scale a row."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        scale = plain.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (plain.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.float() * self.scale)


def dynamic(plain: nn.Linear) -> nn.Module:
    """Torch's own 8-bit layer, whose weights are in no tensor at all."""
    wrapped = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {nn.Linear}, dtype=torch.qint8)
    return wrapped[0]  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [Halves, dynamic], ids=["codes", "torch's"])
@torch.no_grad()
def test_modules_that_hold_quantised_weights_are_multiplied_by_as_they_are(
    make: Callable[[nn.Linear], nn.Module], tiny_model: Any
) -> None:
    """What is added is compared by itself: torch's layer rounds activations too, by the largest of a whole batch."""
    model, space = tiny_model(), BoundSpace(RankOnePool(64), KEY)
    name = "model.layers.0.mlp.up_proj.weight"
    module = make(model.model.layers[0].mlp.up_proj)
    model.model.layers[0].mlp.up_proj = module
    x = torch.randn(2, 5, module.in_features, generator=torch.Generator().manual_seed(0))
    plain, matrix = module(x), module(torch.eye(module.in_features)).T
    tuned = folded(model)
    tuned.reset(STATE)
    moved = torch.zeros_like(matrix)
    space.replay(moved, moved, STATE, name)
    assert torch.allclose(module(x) - plain, x @ moved.T, atol=1e-5)
    assert torch.allclose(dict(tuned.named_weights())[name], matrix + moved, atol=1e-6)
    space.axpy(moved, moved, 0.5, name, 3)
    with tuned.perturbed(3, 0.5):
        assert torch.allclose(module(x) - plain, x @ moved.T, atol=1e-5)
    above, below = tuned.losses(response_loss, batch_of(), 3, (0.05, -0.05))
    assert abs(above - below) > 1e-3
    tuned.close()
    assert torch.equal(module(x), plain)


@pytest.mark.parametrize("kind", [RankOne(), RankOnePool(64)], ids=str)
def test_a_module_that_reads_another_one_s_matrix_itself_is_refused(kind: Any, tiny_model: Any) -> None:
    model = tiny_model()
    layer = model.model.layers[0].mlp
    up = layer.up_proj.weight
    layer.gate_proj.forward = lambda x: nn.functional.linear(x, up)
    with pytest.raises(
        ModelError, match=r"up_proj.weight: a module of this architecture reads parameters of another"
    ):
        projected(model, BoundSpace(kind, KEY)).inspect()


def test_what_is_refused(tiny_model: Any) -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match="all of it"):
        folded(model, {"lm_head.weight": torch.ones(2, 2)})
    tuned = folded(model)
    for act in (tuned.apply, tuned.reset):
        with pytest.raises(ModelError, match="dense"):
            act(Dense({}))
    assert type(projected(tiny_model(), KeptSpace(RankOne(), KEY))) is ProjectedTuned


@kinds
@torch.no_grad()
def test_points_that_turn_out_not_to_be_told_apart_are_walked_one_by_one(kind: Any, tiny_model: Any) -> None:
    """A later batch may show what the probe did not: here a layer that sees all tokens but one, and that one."""
    _, moved = handles(tiny_model(), kind)
    batch, points = batch_of(), [(1, 1e-2), (2, -1e-2)]
    expected, own = moved.line_losses(batch, points)[0], moved.own_line_losses(batch, [4, 5, 6], (1e-2,))[0]
    layer: Any = moved.model.get_submodule("model.layers.0.mlp")
    whole = layer.forward

    def apart(x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        return torch.cat([whole(rows[:-1]), whole(rows[-1:])]).view_as(x)

    layer.forward = apart
    for found, same in (
        (moved.line_losses(batch, points)[0], expected),
        (moved.own_line_losses(batch, [4, 5, 6], (1e-2,))[0], own),
    ):
        assert close(found, same)
    assert not moved.inspect()
