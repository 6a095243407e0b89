"""Every grid in a file that llama.cpp runs: the same weights, the same distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from toys import TEXTS, check, plan_of, quantise, round_to, script, tiny_llama
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgetune.core.errors import ModelError, VerifyError
from edgetune.core.gguf_read import read_gguf, read_metadata, read_tensors
from edgetune.core.quantised import (
    GRIDS,
    NVFP4,
    Q2_K,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    CodedTensor,
    QuantisedMatrix,
    values_of,
)
from edgetune.export.architectures import architecture_of
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.plan import FILE_TYPES
from edgetune.export.tensors import WITH_UNITS
from edgetune.export.tolerance import log_probabilities
from edgetune.models.backbone import load_backbone
from edgetune.models.stored import stored_weights, streamed_weights

WIDE = {"hidden_size": 256, "intermediate_size": 512}
UP = "model.layers.0.mlp.up_proj.weight"


FAMILIES = script("families")
EXACT = ("Llama", "Llama 3", "Llama, biases", "Mistral", "Qwen3", "Cohere 2")
"""Of every architecture in which llama.cpp reads units."""


def continuation(model: PreTrainedModel, count: int) -> list[int]:
    """Tokens drawn from the model itself."""
    generator, ids = torch.Generator().manual_seed(0), [5]
    with torch.no_grad():
        for _ in range(count):
            chances = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            ids.append(int(torch.multinomial(chances, 1, generator=generator)))
    return ids


def divergence(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """An estimate of KL(ours || theirs) on tokens drawn from ours: unbiased, and every term is at least 0."""
    gaps = theirs - ours
    return float((gaps.exp() - 1 - gaps).mean())


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_llama_cpp_computes_what_pytorch_computes_with_the_same_weights(
    name: str, pretrained: Any, tmp_path: Path
) -> None:
    model, tokenizer = pretrained("markov-3.7M")
    dense = log_probabilities(model, [(ids := continuation(model, 150), 1)])
    quantised = quantise(model, GRIDS[name])
    assert name in {matrix.grid.name for matrix in quantised.values()}
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    ours = log_probabilities(model, [(ids, 1)])
    with LlamaCpp(path, threads=1, context=256, exact=True) as llama:
        theirs = torch.tensor(llama.log_probabilities(ids, 1), dtype=torch.float64)
    assert divergence(ours, theirs) < 1e-4
    assert name == "Q8_0" or divergence(ours, theirs) < divergence(dense, ours), (
        "else the test could not fail"
    )


@pytest.mark.parametrize("name", sorted(GRIDS))
@pytest.mark.parametrize("tied", [False, True])
def test_quantised_files_stay_within_the_bounds(
    name: str, tied: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama(tie_word_embeddings=tied, **WIDE)
    quantised = quantise(model, GRIDS[name])
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    assert (
        read_metadata(path)["general.file_type"] == gguf.LlamaFileType[FILE_NAMES.get(name, f"MOSTLY_{name}")]
    )
    found = check(path, model, tokenizer, [(ids, 1), (ids[::-1], 20)], TEXTS, quantised)
    assert 0 < found.max_log_probability_difference < 1.0


FILE_NAMES = {"MXFP4": "MOSTLY_MXFP4_MOE"} | {f"Q{bits}_K": f"MOSTLY_Q{bits}_K_S" for bits in (3, 4, 5)}


def test_every_grid_names_a_file() -> None:
    assert set(GRIDS) <= set(FILE_TYPES)


def test_a_file_of_several_grids_is_named_after_the_most_frequent(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama(**WIDE)
    quantised = quantise(model, Q4_K)
    kinds = [Q2_K, Q6_K, Q8_0, Q4_0]
    for kind, (name, parameter) in zip(kinds, list(model.named_parameters())[1:5], strict=True):
        quantised[name] = round_to(parameter.data, kind)
        parameter.data.copy_(quantised[name].dequantise())
    plan = plan_of(model, tokenizer, quantised)
    assert plan.file_type == "Q4_K"
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    stored = sum(tensor.size or 0 for tensor in read_gguf(path).tensors)
    assert stored <= plan.tensor_bytes < stored + 32 * len(plan.tensors)
    check(path, model, tokenizer, [(ids, 1)], TEXTS, quantised)


def test_a_unit_is_stored_beside_its_matrix_and_belongs_to_its_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_llama(**WIDE, initializer_range=2e-4)
    quantised = quantise(model, NVFP4)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    raw = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    unit = float(raw["blk.0.ffn_up.scale"].data[0])
    assert unit == quantised[UP].unit < 1e-5
    ours = gguf.quants.dequantize(raw["blk.0.ffn_up.weight"].data, gguf.GGMLQuantizationType.NVFP4) * unit
    found = dict(read_tensors(path))
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], ours)
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], quantised[UP].dequantise().numpy())
    assert not any(name.endswith(".scale") for name in found)
    assert "token_embd.scale" not in raw


def test_a_lost_unit_is_found(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> None:
    model = tiny_llama(**WIDE)
    quantised = quantise(model, NVFP4)
    without = quantised | {UP: replace(quantised[UP], unit=quantised[UP].unit / 2)}
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=without)
    with pytest.raises(VerifyError, match=r"weights differ[^\n]*"):
        check(path, model, tokenizer, [(ids, 1)], TEXTS, quantised)


def test_a_unit_of_the_embeddings_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(**WIDE)
    embedding = round_to(model.get_input_embeddings().weight.data, NVFP4)
    quantised = {"model.embed_tokens.weight": embedding}
    with pytest.raises(ModelError, match=r"has the unit .*, which the file cannot hold"):
        write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    plain = {"model.embed_tokens.weight": replace(embedding, unit=1.0)}
    assert write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=plain).is_file()


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_file_of_any_grid_is_a_base_again(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_llama(**WIDE, initializer_range=2e-3)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantise(model, GRIDS[name]))
    again = load_backbone(path).model
    stored = stored_weights(path, model)
    assert stored is not None
    for parameter, weight in model.named_parameters():
        assert torch.equal(again.get_parameter(parameter), weight), parameter
        assert torch.equal(stored[parameter].float(), weight), parameter
    packed = streamed_weights(path, model)
    assert packed is not None
    for parameter, weight in model.named_parameters():
        held, width = packed[parameter], weight.shape[-1]
        assert isinstance(held, torch.Tensor) or weight.dim() == 2
        values = values_of(held, 0, held.numel()).float().view(weight.shape)
        assert torch.equal(values, weight), parameter
        if weight.dim() == 2:
            some = values_of(held, width, 2 * width).float().view(2, width)
            assert torch.equal(some, weight[1:3]), parameter
    if isinstance(held := packed[UP], CodedTensor):
        ids = torch.tensor([5, 0, 5])
        assert torch.equal(held.read(ids), model.get_parameter(UP)[ids])
        assert torch.equal(held.part(3, 700), model.get_parameter(UP).view(-1)[3:703])


@pytest.mark.parametrize("kind", ["two numbers", "a half", "no number"])
def test_a_unit_that_is_no_number_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.ones((2, 32), np.float32))
    units = {"two numbers": np.ones(2, np.float32), "a half": np.ones(1, np.float16)}
    writer.add_tensor("blk.0.ffn_up.scale", units.get(kind, np.array([np.nan], np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"unit is not one number"):
        list(read_tensors(path))


def in_nvfp4(model: PreTrainedModel) -> dict[str, QuantisedMatrix]:
    """The matrices of the layers, rounded."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and ".layers." in name and parameter.shape[1] % NVFP4.block == 0:
            found[name] = round_to(parameter.data, NVFP4)
            parameter.data.copy_(found[name].dequantise())
    return found


@pytest.mark.parametrize("family", EXACT)
def test_the_units_of_a_layer_are_computed_with(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = FAMILIES.make_model(family)
    quantised = in_nvfp4(model)
    assert {matrix.unit for matrix in quantised.values()} != {1.0}
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    check(path, model, tokenizer, [(ids, 1)], TEXTS, quantised)


@pytest.mark.parametrize("family", ["Qwen2", "Gemma 3", "Phi-3", "SmolLM3"])
def test_an_architecture_in_which_llama_cpp_forgets_units_is_refused(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES.make_model(family)
    with pytest.raises(ModelError, match="without the units of its matrices"):
        plan_of(model, tokenizer, in_nvfp4(model))


def test_architectures_with_units_are_all_tried() -> None:
    tried = {architecture_of(FAMILIES.make_model(family).config).name for family in EXACT}
    assert tried == WITH_UNITS
