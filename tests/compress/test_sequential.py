from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from edgetune.compress import walk as walk_module
from edgetune.compress.blocks import decoder_blocks, matrices_in, read_matrix
from edgetune.compress.capture import capture
from edgetune.compress.hessian import Hessian
from edgetune.compress.sequential import compress_model
from edgetune.compress.streams import Stream, stages
from edgetune.compress.walk import Walk
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError, ModelError
from edgetune.core.events import Event, LayerCompressed
from edgetune.core.quantised import Q8_0
from edgetune.methods.compression import optq, rtn

from .problems import FAMILIES, tiny

OPTQ, RTN = optq.METHOD, rtn.METHOD
PROJECTIONS = dataclasses.replace(OPTQ, embeddings=None)

STAGES = {
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "qwen2": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "gemma": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "gemma3": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "opt": [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]],
    "gpt2": [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]],
}


def collect(events: list[LayerCompressed]) -> Any:
    def listen(event: Event) -> None:
        assert isinstance(event, LayerCompressed)
        events.append(event)

    return listen


def names_of(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_share_an_input_form_one_stage(family: str, calibration: list[torch.Tensor]) -> None:
    model = tiny(family)
    blocks = decoder_blocks(model)
    linears, others = matrices_in(blocks[0], names_of(model))
    with torch.no_grad():
        found = stages(blocks[0], linears, capture(model, blocks, calibration), 0)
    order = {"q_proj": 0, "k_proj": 1, "v_proj": 2, "gate_proj": 0, "up_proj": 1}
    short = [sorted((n.split(".")[-2] for n in stage), key=lambda n: order.get(n, 0)) for stage in found]
    assert short == STAGES[family]
    assert not others


class InPlace(nn.Module):
    """Two layers handed one tensor, which changes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        first = self.a(x) + self.b(x.view_as(x))
        return first + self.c(x.mul_(2))


@torch.no_grad()
def test_a_tensor_written_to_in_between_is_another_input() -> None:
    block = InPlace()
    stream = Stream(torch.ones(1, 4, 32), [((), {})], torch.ones(4, dtype=torch.bool))
    assert stages(block, dict(block.named_children()), [stream], 0) == [["a", "b"], ["c"]]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_blocks_fed_one_by_one_compute_what_the_model_computes(
    family: str, calibration: list[torch.Tensor]
) -> None:
    model = tiny(family)
    blocks = decoder_blocks(model)
    ids = calibration[0]
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    seen: list[torch.Tensor] = []
    handle = blocks[-1].register_forward_hook(
        lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    streams = capture(model, blocks, [Batch(ids, mask, ids)])
    handle.remove()
    for index, block in enumerate(blocks):
        streams[0].hidden = streams[0].run(block, index)
    torch.testing.assert_close(streams[0].hidden, seen[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_ends_on_the_grid_bit_for_bit(family: str, calibration: list[torch.Tensor]) -> None:
    model, reference = tiny(family), tiny(family)
    events: list[LayerCompressed] = []
    results = compress_model(model, calibration, OPTQ, collect(events))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    per_block = sum(len(stage) for stage in STAGES[family])
    blocks = len(decoder_blocks(model))
    assert len(results) == blocks * per_block + (1 if tied else 2)
    assert [event.name for event in events] == list(results)
    compressed = dict(model.named_parameters())
    for name, matrix in results.items():
        weights = matrix.dequantise()
        conv = family == "gpt2" and name.split(".")[-2].startswith("c_")
        assert torch.equal(compressed[name], weights.T if conv else weights), name
        assert matrix.grid == (Q8_0 if "emb" in name or "wte" in name or "lm_head" in name else OPTQ.grid)
    for name, parameter in reference.named_parameters():
        assert (name in results) or torch.equal(parameter, compressed[name]), name
    solved = [event for event in events if event.grid == "Q4_0"]
    assert all(event.error < event.rounding_error and not event.fallback for event in solved)
    assert all(event.damping == 0.01 for event in solved)
    assert not model.training
    ids = calibration[0]
    with torch.no_grad():
        model_difference = (model(ids).logits - reference(ids).logits).norm() / reference(ids).logits.norm()
    assert 0 < model_difference < 0.5


def test_calibration_inputs_are_those_of_the_compressed_predecessors(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    seen: dict[str, torch.Tensor] = {}
    compressed = tiny("llama")
    compress_model(compressed, calibration, PROJECTIONS)
    # The last stage of the last block: with everything before it compressed, its reported error is the true one.
    target = "model.layers.1.mlp.down_proj.weight"
    events: list[LayerCompressed] = []
    original = read_matrix(model.get_submodule(target.removesuffix(".weight")))  # type: ignore[arg-type]
    compress_model(model, calibration, PROJECTIONS, collect(events))
    hessian = Hessian(96)
    module = compressed.get_submodule(target.removesuffix(".weight"))
    with torch.no_grad():
        handle = module.register_forward_pre_hook(lambda _, a: seen.update(x=a[0]))
        for batch in calibration:
            compressed(batch)
            hessian.add(seen["x"].reshape(-1, 96))
        handle.remove()
    difference = compressed.get_parameter(target).detach() - original
    error = (difference @ hessian.matrix * difference).sum() / (original @ hessian.matrix * original).sum()
    reported = next(event.error for event in events if event.name == target)
    assert reported == pytest.approx(float(error), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_says_nothing(family: str, calibration: list[torch.Tensor]) -> None:
    batches, padded = [], []
    for ids in calibration:
        ones = torch.ones_like(ids)
        batches.append(Batch(ids, ones, ids))
        more = torch.cat([ids, torch.ones(len(ids), 7, dtype=torch.int64)], dim=1)
        mask = torch.cat([ones, torch.zeros(len(ids), 7, dtype=torch.int64)], dim=1)
        padded.append(Batch(more, mask, more))
    gathered = []
    for given in (batches, padded):
        model = tiny(family)
        blocks = decoder_blocks(model)
        linears, _ = matrices_in(blocks[0], names_of(model))
        with torch.no_grad():
            streams = capture(model, blocks, given)
            last = list(linears.values())[-1]
            with Walk(blocks[0], 0, streams, {last: 0}) as walk:
                inputs = list(walk.inputs(0))
            gathered.append(torch.cat([s.tokens(x) for s, x in zip(streams, inputs, strict=True)]))  # type: ignore[arg-type]
    torch.testing.assert_close(gathered[0], gathered[1], rtol=1e-4, atol=1e-5)


def test_one_hessian_serves_q_k_and_v(
    calibration: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = Hessian.__init__

    def counting(
        self: Hessian, columns: int, device: torch.device | str = "cpu", *, dense: bool = False
    ) -> None:
        made.append(columns)
        original(self, columns, device, dense=dense)

    monkeypatch.setattr(Hessian, "__init__", counting)
    compress_model(tiny("llama"), calibration, PROJECTIONS)
    assert made == [64, 64, 64, 96] * 2


def test_rounding_needs_no_text_and_compensation_does(calibration: list[torch.Tensor]) -> None:
    free, calibrated = tiny("llama"), tiny("llama")
    events: list[LayerCompressed] = []
    without = compress_model(free, (), RTN, collect(events))
    with_text = compress_model(calibrated, calibration, RTN)
    assert without.keys() == with_text.keys()
    for name, matrix in without.items():
        assert torch.equal(matrix.codes, with_text[name].codes)
    assert all(event.error == event.rounding_error and not event.fallback for event in events)
    with pytest.raises(DataError, match=r"optq.*calibration text"):
        compress_model(tiny("llama"), (), OPTQ)


def test_an_odd_input_dimension_stays_in_float_and_is_reported(calibration: list[torch.Tensor]) -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=100,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=50,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    before = model.get_parameter("model.layers.0.mlp.down_proj.weight").clone()
    events: list[LayerCompressed] = []
    results = compress_model(model, calibration, OPTQ, collect(events))
    left = [event for event in events if event.grid == "F32"]
    assert [event.name for event in left] == ["model.layers.0.mlp.down_proj.weight"]
    assert left[0].name not in results
    assert torch.equal(model.get_parameter(left[0].name), before)


def test_a_layer_no_token_reaches_is_rounded_and_flagged(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    model.model.layers[0].unused = nn.Linear(64, 8, bias=False)
    events: list[LayerCompressed] = []
    results = compress_model(model, calibration, OPTQ, collect(events))
    assert [event.name for event in events if event.fallback] == ["model.layers.0.unused.weight"]
    assert "model.layers.0.unused.weight" in results


def test_calibration_of_padding_alone_is_flagged_as_rounding(calibration: list[torch.Tensor]) -> None:
    ids = calibration[0]
    events: list[LayerCompressed] = []
    compress_model(tiny("llama"), [Batch(ids, torch.zeros_like(ids), ids)], PROJECTIONS, collect(events))
    assert all(event.fallback and event.error == event.rounding_error for event in events)


@pytest.mark.parametrize("ids", [torch.arange(5), torch.zeros(0, 8, dtype=torch.int64)])
def test_a_batch_of_another_shape_is_refused(ids: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"must be \[batch, length\]"):
        compress_model(tiny("llama"), [ids], PROJECTIONS)


def test_nan_weights_and_activations_are_refused_by_name(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight: row 3"):
        compress_model(model, calibration, PROJECTIONS)
    model = tiny("llama")
    model.get_parameter("model.layers.1.input_layernorm.weight").data[0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj.*NaN or infinity"):
        compress_model(model, calibration, PROJECTIONS)


def test_the_storage_a_parameter_came_from_is_not_written_to(calibration: list[torch.Tensor]) -> None:
    model = tiny("gpt2")
    storages = {name: (p.data, p.data.clone()) for name, p in model.named_parameters()}
    compress_model(model, calibration, OPTQ)
    assert all(torch.equal(now, before) for now, before in storages.values())


def test_no_hook_is_left_behind_and_the_mode_is_restored(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    model.train()
    compress_model(model, calibration, PROJECTIONS)
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert not any(isinstance(v, list) for v in vars(walk_module).values())


def test_the_same_input_gives_the_same_codes(calibration: list[torch.Tensor]) -> None:
    first, second = (compress_model(tiny("qwen2"), calibration, OPTQ) for _ in range(2))
    for name, matrix in first.items():
        assert torch.equal(matrix.codes, second[name].codes)
        assert all(map(torch.equal, matrix.numbers, second[name].numbers))
