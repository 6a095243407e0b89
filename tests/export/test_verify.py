from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import TEMPLATE, TEXTS, byte_level, check, plain_texts, plan_of, quantise, script, tiny_llama
from transformers import PreTrainedTokenizerFast

from edgetune.compress.placement import placement
from edgetune.compress.sequential import compress_model
from edgetune.core.errors import ModelError, VerifyError
from edgetune.core.gguf_names import NAMES, interleaved_rows
from edgetune.core.quantised import GRIDS
from edgetune.export import architectures
from edgetune.export.gguf_file import write_gguf, write_planned
from edgetune.export.llama import INTERLEAVED, LLAMA, llama_parameters
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.parity import compare_templates, compare_texts
from edgetune.export.plan import plan_export
from edgetune.export.speech import speech_of
from edgetune.export.tensors import hold_as_stored
from edgetune.export.tolerance import LEAST, measure
from edgetune.export.verify import compare_header, verify
from edgetune.methods.catalogue import compression_method

FAMILIES = script("families")
UNKNOWN = {
    "OPT", "GPT-J", "GPT-Neo", "CodeGen", "Helium", "EXAONE 4", "Mixtral", "Qwen3, mixture", "Mamba",
    "Llama, dynamic positions",
}  # fmt: skip
"""Rows that cannot be written; a row that learns to be moves out of here."""


@pytest.mark.parametrize("family", sorted(set(FAMILIES.SHAPES) - UNKNOWN))
def test_every_family_computes_the_same_in_llama_cpp(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = FAMILIES.make_model(family)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    found = check(path, model, tokenizer, [(ids, 1)], TEXTS, float_type="F32")
    assert found.mean_log_probability_difference < 0.001
    assert found.perplexity_llama_cpp == pytest.approx(found.perplexity_torch, rel=0.005)
    assert found.tokenizer_texts == len(TEXTS)


@pytest.mark.parametrize("family", sorted(UNKNOWN - {"Mamba"}))
def test_a_family_that_cannot_be_written_is_refused_from_its_configuration(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ModelError, match=r"cannot be written as GGUF|computes this family differently"):
        plan_of(FAMILIES.make_model(family), tokenizer)


@pytest.mark.parametrize(
    "family", ["Llama", "Phi-3", "GPT-NeoX (Pythia)", "Falcon 40B", "OLMo 2, tied", "GPT-2"]
)
def test_what_compression_packs_is_what_was_planned(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model, method = FAMILIES.make_model(family), compression_method("rtn")
    grids = placement(model, method)
    plan = plan_export(model, tokenizer, speech_of(tokenizer, (1,)), grids=grids)
    packed = compress_model(model, [], method)
    assert {name: matrix.grid for name, matrix in packed.items()} == grids
    hold_as_stored(model, plan.tensors)
    path = write_planned(tmp_path / "m.gguf", plan, model, quantised=packed)
    found = verify(path, model, tokenizer, plan, [(ids, 1)], plain_texts(tokenizer, TEXTS), ends=(1,))
    assert found.mean_log_probability_difference < 0.1


@pytest.mark.parametrize("name", ["stories260K", "markov-3.7M"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_pretrained_models_agree(name: str, kind: Any, pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = pretrained(name)
    quantised = quantise(model, GRIDS[kind]) if kind in GRIDS else {}
    path = write_gguf(
        tmp_path / "m.gguf",
        model,
        tokenizer,
        quantised=quantised,
        float_type="F32" if kind == "F32" else "F16",
    )
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    found = check(
        path,
        model,
        tokenizer,
        [(tokenizer(text).input_ids, 1)],
        [text, "Ünïcode 🙂\n\n two  spaces"],
        quantised,
    )
    assert found.mean_log_probability_difference <= (0.03 if quantised else 0.002)
    assert found.perplexity_llama_cpp == pytest.approx(found.perplexity_torch, rel=0.01)


def llama_with(**changed: Any) -> Any:
    return replace(LLAMA, parameters=lambda config: llama_parameters(config) | changed)


def two_heads_swapped(config: Any, rows: int) -> torch.Tensor:
    order, width = interleaved_rows(rows, config.num_attention_heads), rows // config.num_attention_heads
    return torch.cat([order[width : 2 * width], order[:width], order[2 * width :]])


FAULTS = {
    "no row order": replace(LLAMA, rows={}),
    "another rope base": llama_with(**{"rope.freq_base": 2e4}),
    "two heads of q swapped": replace(LLAMA, rows=INTERLEAVED | {"self_attn.q_proj": two_heads_swapped}),
    "norms swapped": replace(
        LLAMA, names=NAMES | {"input_layernorm": "ffn_norm", "post_attention_layernorm": "attn_norm"}
    ),
}
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    " Tom saw a big dog and it was happy."
)
ABSURD = "The SUM function of a spreadsheet totals the cells of A1:A99; f(x) = 7 % mod 3?"


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("text", [STORY, ABSURD], ids=["expected", "absurd"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_wrong_computation_with_the_right_weights_is_caught(
    kind: str, text: str, fault: str, pretrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = pretrained("stories260K")
    quantised = quantise(model, GRIDS[kind]) if kind in GRIDS else {}
    hold_as_stored(model, plan_of(model, tokenizer, quantised).tensors)
    examples = [(tokenizer(text).input_ids, 1)]
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    assert check(path, model, tokenizer, examples, [text], quantised).tokenizer_texts == 1
    # The same fault in what is compared with hides it from the comparison of weights.
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", FAULTS[fault])
    write_gguf(path, model, tokenizer, quantised=quantised)
    with pytest.raises(VerifyError, match="does not compute what PyTorch computes"):
        check(path, model, tokenizer, examples, [text], quantised)


@pytest.mark.parametrize("name", ["another rope base by a tenth", "another norm epsilon"])
def test_small_faults_are_caught_where_nothing_is_rounded_much(
    name: str, pretrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"another rope base by a tenth": {"rope.freq_base": 1.1e4}}.get(
        name, {"attention.layer_norm_rms_epsilon": 1e-3}
    )
    model, tokenizer = pretrained("stories260K")
    hold_as_stored(model, plan_of(model, tokenizer).tensors)
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", llama_with(**changed))
    wrong = write_gguf(tmp_path / "wrong.gguf", model, tokenizer, quantised={})
    with pytest.raises(VerifyError, match="with fp32 attention"):
        check(wrong, model, tokenizer, [(tokenizer(STORY).input_ids, 1)], [STORY])


def test_the_allowance_is_what_llama_cpp_really_rounds(pretrained: Any, tmp_path: Path) -> None:
    """On text the model finds absurd, llama.cpp's own rounding is large: the measured noise is as large, not larger."""
    model, tokenizer = pretrained("stories260K")
    hold_as_stored(model, plan_of(model, tokenizer).tensors)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
    plan = plan_of(model, tokenizer)
    examples = [
        (tokenizer(text).input_ids, 1) for text in (ABSURD, ABSURD[::-1], ABSURD.upper(), STORY[::-1])
    ]
    measured = measure(model, plan, examples)
    found = check(path, model, tokenizer, examples, [])
    usual = found.usual_mean_difference
    assert usual is not None
    assert usual > 0.002, "this text is absurd enough to tell"
    assert 0.5 < 3 * found.mean_log_probability_difference / (measured.exact.mean - LEAST) < 2
    assert 0.5 < 3 * usual / (measured.usual.mean - LEAST) < 2


def test_in_fp32_llama_cpp_and_torch_are_equal(pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = pretrained("stories260K")
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    examples = [(tokenizer(text).input_ids, 1) for text in (ABSURD, STORY)]
    found = check(path, model, tokenizer, examples, [], float_type="F32")
    assert found.max_log_probability_difference < 1e-4
    assert found.usual_max_difference is not None
    assert found.usual_max_difference > 1e-3


def test_scoring_is_bounded(pretrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = pretrained("stories260K")
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={}, float_type="F32")
    ids = tokenizer(STORY).input_ids
    scored: list[tuple[int, int]] = []
    real = LlamaCpp.log_probabilities

    def count(self: LlamaCpp, ids: Any, start: int) -> list[float]:
        scored.append((len(ids), start))
        return real(self, ids, start)

    monkeypatch.setattr(LlamaCpp, "log_probabilities", count)
    monkeypatch.setattr("edgetune.export.verify.POSITIONS", len(ids) + 4)
    check(path, model, tokenizer, [(ids, 1), (ids, 10), (ids, 2)], [], float_type="F32")
    assert scored == [(len(ids), 1), (10 + 5, 10)] * 2


def test_a_missing_row_order_is_caught(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", replace(LLAMA, rows={}))
    model = tiny_llama()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
    with pytest.raises(VerifyError, match="does not compute what PyTorch computes"):
        check(path, model, tokenizer, [(ids, 1)], TEXTS)


def test_the_row_order_of_quantised_rows_is_checked_too(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", replace(LLAMA, rows={}))
    model = tiny_llama()
    quantised = quantise(model)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    with pytest.raises(VerifyError, match="does not compute what PyTorch computes"):
        check(path, model, tokenizer, [(ids, 1)], TEXTS, quantised)


def test_a_missing_template_is_caught(tmp_path: Path, ids: list[int]) -> None:
    bare, model = byte_level(), tiny_llama()
    bare.chat_template = None
    path = write_gguf(tmp_path / "m.gguf", model, bare, quantised={})
    with pytest.raises(VerifyError, match="chat_template is another than planned"):
        check(path, model, byte_level(), [(ids, 1)], TEXTS)
    with LlamaCpp(path) as llama, pytest.raises(VerifyError, match="chat template is missing"):
        compare_templates(llama, bare, TEMPLATE)


def test_a_template_that_llama_cpp_renders_otherwise_is_caught(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    with LlamaCpp(path) as llama:
        compare_templates(llama, tokenizer, TEMPLATE)
        other = byte_level()
        other.add_tokens(["What is"])
        with pytest.raises(VerifyError, match="other tokens of a text"):
            compare_templates(llama, other, TEMPLATE)


def test_one_damaged_weight_is_caught(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama()
    quantised = quantise(model)
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised=quantised)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] += 0.01
    with pytest.raises(VerifyError, match=r"blk\.1\.ffn_down\.weight: 1 of 6144 weights differ"):
        check(path, model, tokenizer, [(ids, 1)], TEXTS, quantised)


def test_another_tokenizer_is_caught_with_its_first_difference(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={}, pre_tokenizer="smollm")
    texts = plain_texts(tokenizer, ["x 12345", *TEXTS, *(str(n) for n in range(3000))])
    with LlamaCpp(path) as llama, pytest.raises(VerifyError, match="other tokens of a text, from token"):
        compare_texts(llama, tokenizer, texts, composes=False)


def test_half_precision_models_are_judged_in_float32(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama().half()
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
    assert check(path, model, tokenizer, [(ids, 1)], []).mean_log_probability_difference < 0.005
    assert model.dtype == torch.float16


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"rope.freq_base": 10001.0}},
        {"parameters": {"context_length": 255}},
        {"flags": {"add_bos_token": True}},
        {"ids": {"eos": 2}},
        {"tokens": ("another", *byte_level().convert_ids_to_tokens(range(1, 384)))},
        {"types": (1,) * 384},
        {"merges": ("a b",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_header_that_was_not_planned_is_caught(
    change: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    model = tiny_llama()
    plan = plan_of(model, tokenizer)
    path = write_planned(tmp_path / "m.gguf", plan, model, quantised={})
    compare_header(path, plan)
    if "parameters" in change:
        other = replace(plan, parameters={**plan.parameters, **change["parameters"]})
    else:
        kept = {key: {**getattr(plan.vocabulary, key), **value} if isinstance(value, dict) else value
                for key, value in change.items()}  # fmt: skip
        other = replace(plan, vocabulary=replace(plan.vocabulary, **kept))
    with pytest.raises(VerifyError, match="another than planned"):
        compare_header(path, other)
