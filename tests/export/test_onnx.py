"""ONNX files of a decoder with heads, embedding and biases of its own: what is stored, and what is predicted."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx_toys import far, far_in_a_padded_batch, some_ids, stored, toy, written

from edgetune.core.errors import ConfigError, MissingExtraError, ModelError, VerifyError
from edgetune.core.quantised import Q4_0, Q4_K, QuantisedMatrix
from edgetune.export.onnx_graph import LIBRARIES, compare_codes, refuse_for_onnx
from edgetune.export.onnx_runtime import OnnxDecoder
from edgetune.run.onnx_folder import compare_in_onnx

NEEDED = pytest.mark.skipif(
    any(importlib.util.find_spec(one) is None for one in LIBRARIES), reason="install edgetune[onnx]"
)
Made = tuple[Any, Mapping[str, QuantisedMatrix], Path]
GRID = "uint4-g32"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Qwen2 whose head is not its embedding, by groups with zero points."""
    model = toy("qwen2", tie_word_embeddings=False)
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, written(model, file, GRID), file


def changed(file: Path, to: Path, name: str, change: Any) -> Path:
    """Write a copy of a file in which one weight is another."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file)
    one = next(one for one in graph.graph.initializer if one.name == name)
    one.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(one).copy()), name))
    onnx.save(graph, to)
    return to


def flipped(array: Any) -> Any:
    array.reshape(-1)[7] ^= 16
    return array


@NEEDED
def test_the_file_holds_the_codes_scales_and_zero_points_of_the_solver(made: Made) -> None:
    _, quantised, file = made
    there = stored(file)
    name = "model.layers.1.mlp.down_proj.weight"
    stem, matrix = f"model.{name.removesuffix('.weight')}", quantised[name]
    bytes_of, zeros = there[f"{stem}.codes"], there[f"{stem}.zeros"]
    assert there[f"{stem}.scales"].dtype == np.float16
    for n in range(matrix.codes.shape[0]):
        for k in range(matrix.codes.shape[1]):
            byte = int(bytes_of[n, k // 32, k % 32 // 2])
            assert (byte >> 4 if k % 2 else byte & 15) - 8 == int(matrix.codes[n, k])
        for g in range(3):
            byte = int(zeros[n, g // 2])
            assert (byte >> 4 if g % 2 else byte & 15) - 8 == int(matrix.numbers[1][n, g])
    dense = [
        one for one in there if one.endswith("proj.weight") or ("embed" in one and one.endswith(".weight"))
    ]
    assert not dense  # nothing is stored a second time
    assert {name for name in quantised if "embed" in name or "head" in name} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert there["model.model.embed_tokens.codes"].shape == (96, 2, 32)  # 8 bits


@NEEDED
def test_predictions_are_those_of_the_dequantised_model(made: Made) -> None:
    model, _, file = made
    decoder = OnnxDecoder(file)
    ids = some_ids(30)
    assert far(model, decoder, ids) < 1e-5
    assert far(model, decoder, ids[:1]) < 1e-5
    assert far_in_a_padded_batch(model, decoder, ids, ids[3:9]) < 1e-5
    compared = compare_in_onnx(file, model, [ids, ids[:5]])
    assert compared.gap < 1e-5
    assert abs(compared.divergence) < 1e-9


@NEEDED
def test_a_written_model_is_as_it_was(made: Made) -> None:
    model, quantised, _ = made
    names = {name for name, _ in model.named_parameters()}
    assert set(quantised) <= names
    assert all(torch.equal(model.get_parameter(name), one.dequantise()) for name, one in quantised.items())
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert model.config._attn_implementation == "sdpa"


@NEEDED
@pytest.mark.parametrize("part", ["codes", "zeros"])
def test_another_code_is_refused(made: Made, part: str, tmp_path: Path) -> None:
    model, quantised, file = made
    compare_codes(file, model, quantised)
    other = changed(file, tmp_path / "m.onnx", f"model.model.layers.0.self_attn.v_proj.{part}", flipped)
    with pytest.raises(VerifyError, match=r"layers\.0\.self_attn\.v_proj\.weight"):
        compare_codes(other, model, quantised)


@NEEDED
def test_a_matrix_that_is_not_there_is_refused(made: Made) -> None:
    model, quantised, file = made
    more = {**quantised, "model.layers.0.self_attn.q_proj.bias": quantised["lm_head.weight"]}
    with pytest.raises(VerifyError, match=r"q_proj\.bias"):
        compare_codes(file, model, more)


@NEEDED
def test_a_graph_that_computes_otherwise_is_refused(made: Made, tmp_path: Path) -> None:
    model, _, file = made
    name = "model.model.layers.1.input_layernorm.weight"
    other = changed(file, tmp_path / "m.onnx", name, lambda array: array * np.float32(1.01))
    with pytest.raises(VerifyError, match="in ONNX Runtime log-probabilities differ by"):
        compare_in_onnx(other, model, [some_ids(20)])


@NEEDED
def test_a_file_that_is_cut_off_is_refused(made: Made, tmp_path: Path) -> None:
    cut = tmp_path / "m.onnx"
    cut.write_bytes(made[2].read_bytes()[:-1000])
    with pytest.raises(VerifyError, match="ONNX Runtime cannot load it"):
        OnnxDecoder(cut)


def test_what_cannot_be_written_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy("llama")
    with pytest.raises(ModelError, match="'bloom' was never compared in ONNX Runtime"):
        refuse_for_onnx(toy("bloom"), {})
    with pytest.raises(ConfigError, match="no kernel for the grid Q4_K"):
        refuse_for_onnx(model, {"a.weight": Q4_0, "b.weight": Q4_K})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[onnx\]"):
        refuse_for_onnx(model, {"a.weight": Q4_0})
