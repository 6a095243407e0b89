"""ExecuTorch programs of a decoder: what is stored, what is predicted, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_toys import some_ids, toy
from pte_toys import CONTEXT, SAID, written

from edgetune.core.errors import ConfigError, MissingExtraError, ModelError, VerifyError
from edgetune.core.integers import INTEGERS
from edgetune.core.quantised import Q4_0, Q4_K, QuantisedMatrix
from edgetune.export.pte_layers import EXACT, ROUNDED, Arithmetic
from edgetune.export.pte_program import compare_program, refuse_for_pte
from edgetune.export.pte_runtime import PteDecoder
from edgetune.run.graph_folder import differences, predicted
from edgetune.run.pte_folder import compare_in_executorch

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="install edgetune[executorch] (make test-executorch)",
)
Made = tuple[Any, Mapping[str, QuantisedMatrix], Path]
LAYER = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Qwen2, which has biases, whose head is not its embedding: for XNNPACK's kernels."""
    model = toy("qwen2", tie_word_embeddings=False)
    file = tmp_path_factory.mktemp("pte") / "model.pte"
    return model, written(model, file, ROUNDED), file


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same by groups with zero points, unpacked in the graph."""
    model = toy("qwen2", tie_word_embeddings=False)
    file = tmp_path_factory.mktemp("pte") / "model.pte"
    return model, written(model, file, EXACT, "uint4-g32"), file


def in_file(file: Path, wanted: torch.Tensor) -> bool:
    return wanted.contiguous().view(torch.uint8).numpy().tobytes() in file.read_bytes()


def packed(codes: torch.Tensor, *, first_high: bool) -> torch.Tensor:
    """Codes of 4 bits, two a byte, written out by hand."""
    rows = []
    for row in (codes.int() + 8).tolist():
        pairs = zip(row[::2], row[1::2], strict=True)
        rows.append([16 * a + b if first_high else a + 16 * b for a, b in pairs])
    return torch.tensor(rows, dtype=torch.uint8)


@NEEDED
def test_a_program_holds_codes_and_scales_as_xnnpack_takes_them(rounded: Made) -> None:
    _, quantised, file = rounded
    layer, head, rows = (quantised[name] for name in (LAYER, "lm_head.weight", "model.embed_tokens.weight"))
    assert layer.numbers[0].dtype == torch.bfloat16
    assert in_file(file, packed(layer.codes, first_high=False))
    assert in_file(file, layer.numbers[0])
    assert in_file(file, head.codes)
    assert in_file(file, head.numbers[0].float())
    assert in_file(file, rows.codes)
    assert not in_file(file, layer.dequantise())


@NEEDED
def test_a_program_holds_codes_scales_and_zero_points_as_its_embeddings_take_them(exact: Made) -> None:
    _, quantised, file = exact
    layer = quantised[LAYER]
    assert in_file(file, packed(layer.codes, first_high=True))
    assert in_file(file, layer.numbers[0])
    assert in_file(file, layer.numbers[1].float())
    assert not in_file(file, layer.dequantise())


@NEEDED
def test_unpacked_layers_predict_what_the_dequantised_model_does(exact: Made) -> None:
    model, quantised, file = exact
    texts = [some_ids(CONTEXT), some_ids(5, 1), some_ids(1, 2)]
    theirs = PteDecoder(file).log_probabilities(texts)
    assert [len(one) for one in theirs] == [CONTEXT, 5, 1]
    assert differences(predicted(model, texts), theirs, file)[0] < 1e-5
    compared = compare_in_executorch(file, model, quantised, texts, EXACT, CONTEXT)
    assert compared.gap < 1e-5
    assert compared.rounding == 0


@NEEDED
def test_kernels_on_codes_predict_what_pytorch_does_with_activations_of_8_bits(rounded: Made) -> None:
    model, quantised, file = rounded
    compared = compare_in_executorch(file, model, quantised, [some_ids(30)], ROUNDED, CONTEXT)
    assert 1e-6 < compared.rounding < 1e-3
    assert compared.divergence < 0.01 * compared.rounding
    ids = some_ids(30)
    (plain,), (theirs,) = predicted(model, [ids]), PteDecoder(file).log_probabilities([ids])
    assert 1e-4 < float((plain - theirs).abs().max()) < 0.3


@NEEDED
@pytest.mark.filterwarnings("ignore")  # the library's own, of its own interface
def test_a_program_says_how_long_it_reads_and_where_answers_end(rounded: Made) -> None:
    from executorch.runtime import Runtime

    program: Any = Runtime.get().load_program(rounded[2])
    said = {name: program.load_method(name).execute([]) for name in program.method_names if name != "forward"}
    assert said["get_max_seq_len"] == said["get_max_context_len"] == [CONTEXT]
    assert said["use_kv_cache"] == [True]
    assert said["enable_dynamic_shape"] == [True]
    assert said["get_bos_id"] == [SAID.start]
    assert said["get_eos_ids"] == list(SAID.ends)
    assert said["get_vocab_size"] == [96]


@NEEDED
def test_a_written_model_is_as_it_was(rounded: Made) -> None:
    model, quantised, _ = rounded
    assert all(torch.equal(model.get_parameter(name), one.dequantise()) for name, one in quantised.items())
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert model.config._attn_implementation == "sdpa"


@NEEDED
@pytest.mark.parametrize("part", ["codes", "scales"])
def test_another_code_or_scale_is_refused(rounded: Made, part: str, tmp_path: Path) -> None:
    _, quantised, file = rounded
    compare_program(file, quantised, ROUNDED)
    layer = quantised[LAYER]
    tensor = packed(layer.codes, first_high=False) if part == "codes" else layer.numbers[0]
    there = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    whole = file.read_bytes()
    assert whole.count(there) == 1
    place = whole.index(there) + 7
    other = tmp_path / "m.pte"
    other.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    with pytest.raises(VerifyError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        compare_program(other, quantised, ROUNDED)


@NEEDED
def test_a_program_that_computes_otherwise_is_refused(exact: Made, rounded: Made) -> None:
    for (model, quantised, file), arithmetic in ((exact, EXACT), (rounded, ROUNDED)):
        norm = model.model.layers[1].input_layernorm.weight
        before = norm.data.clone()
        norm.data *= 1.05
        try:
            with pytest.raises(VerifyError, match="in ExecuTorch log-probabilities differ by"):
                compare_in_executorch(file, model, quantised, [some_ids(20)], arithmetic, CONTEXT)
        finally:
            norm.data = before


@NEEDED
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_file_that_is_cut_off_is_refused(rounded: Made, kept: float, tmp_path: Path) -> None:
    _, quantised, file = rounded
    whole = file.read_bytes()
    cut = tmp_path / "m.pte"
    cut.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(VerifyError, match="no ExecuTorch program"):
        compare_program(cut, quantised, ROUNDED)
    with pytest.raises(VerifyError, match="ExecuTorch cannot run it"):
        PteDecoder(cut).run([([1, 2], 0)])


@NEEDED
def test_more_than_the_cache_holds_is_refused(rounded: Made) -> None:
    with pytest.raises(VerifyError, match="ExecuTorch cannot run it"):
        PteDecoder(rounded[2]).run([(some_ids(CONTEXT + 1), 0)])


@pytest.mark.parametrize(
    ("arithmetic", "grid", "words"),
    [
        (ROUNDED, Q4_0, "XNNPACK has no kernel for the grid Q4_0"),
        (ROUNDED, INTEGERS["uint4-g32-bf16"], "no kernel for the grid uint4-g32-bf16"),
        (ROUNDED, INTEGERS["int4-g32"], "no kernel for the grid int4-g32 "),
        (ROUNDED, INTEGERS["int8-g32"], "no kernel for the grid int8-g32"),
        (EXACT, Q4_K, "ExecuTorch has no kernel for the grid Q4_K"),
    ],
)
def test_a_grid_without_a_kernel_is_refused_beforehand(arithmetic: Arithmetic, grid: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        refuse_for_pte(toy("llama"), {"a.weight": grid}, arithmetic)


def test_what_cannot_be_written_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="'bloom' was never compared in ExecuTorch"):
        refuse_for_pte(toy("bloom"), {}, EXACT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[executorch\]"):
        refuse_for_pte(toy("llama"), {"a.weight": Q4_0}, EXACT)
