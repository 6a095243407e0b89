"""A GGUF file as base model: what it computes, how it speaks, what it is named, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from ggufs import TEMPLATE, TEXTS, digit_words, metadata_of, sentence_pieces, tensors_of, tiny, write
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edgetune.core.errors import ModelError
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.quiet import quiet
from edgetune.models.stored import stored_size, stored_weights

IDS = torch.tensor([[1, 5, 9, 200, 17, 3, 3, 60, 2, 11, 90, 91, 92, 7]])
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with a tied head": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": (LlamaForCausalLM, LlamaConfig, {"head_dim": 32}),
    "llama with other norms and positions": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
}


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.fixture(scope="module")
def words() -> Any:
    return digit_words()


@pytest.fixture(scope="module")
def model(words: Any) -> PreTrainedModel:
    return tiny(LlamaForCausalLM, LlamaConfig, len(words), bos_token_id=1, eos_token_id=2)


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, model: PreTrainedModel, words: Any) -> Make:
    """Write a file of the tiny Llama with some keys, tensors or types changed; None takes a key out."""

    def made(
        said: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, **options: Any
    ) -> Path:
        given = tensors_of(model) | (tensors or {})
        kept = {name: values for name, values in given.items() if values is not None}
        return write(
            tmp_path / "model.gguf", "llama", metadata_of(model, words) | (said or {}), kept, **options
        )

    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_computes_what_the_model_it_was_made_of_computes(
    name: str, tmp_path: Path, words: Any
) -> None:
    kind, config, settings = FAMILIES[name]
    original = tiny(kind, config, len(words), **settings)
    said = metadata_of(original, words)
    file = write(tmp_path / "model.gguf", original.config.model_type, said, tensors_of(original))
    loaded = load_backbone(file)
    assert torch.equal(logits(loaded.model), logits(original))
    assert loaded.folder == file
    assert stored_size(file) == file.stat().st_size == loaded.size_bytes


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"rope_type": "linear", "factor": 4.0}, {"factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            {"type": "yarn", "factor": 4.0, "original_context_length": 32},
        ),
    ],
)
def test_scaled_positions_are_computed_as_the_original_does(
    scaling: dict[str, Any], said: dict[str, Any], tmp_path: Path, words: Any
) -> None:
    rope = {"rope_theta": 10000.0} | scaling
    original = tiny(LlamaForCausalLM, LlamaConfig, len(words), rope_parameters=rope)
    keys = {f"llama.rope.scaling.{key}": value for key, value in said.items()}
    file = write(tmp_path / "m.gguf", "llama", metadata_of(original, words) | keys, tensors_of(original))
    assert torch.equal(logits(load_backbone(file).model), logits(original))


def llama3_factors(theta: float, width: int, factor: float) -> np.ndarray[Any, Any]:
    """As llama.cpp's converter computes them."""
    found = []
    for index in range(0, width, 2):
        wave = 2 * np.pi * theta ** (index / width)
        if wave < 8192 / 4:
            found.append(1.0)
        elif wave > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_the_scaling_of_a_llama_3_is_known_by_what_it_makes_of_the_frequencies(
    tmp_path: Path, words: Any
) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    original = tiny(LlamaForCausalLM, LlamaConfig, len(words), rope_parameters=rope, head_dim=64)
    factors = llama3_factors(500000.0, 64, 32.0)
    said, tensors = metadata_of(original, words), tensors_of(original)
    file = write(tmp_path / "m.gguf", "llama", said, tensors | {"rope_freqs.weight": factors})
    loaded = load_backbone(file)
    assert loaded.model.config.rope_parameters == rope
    assert torch.equal(logits(loaded.model), logits(original))
    factors[20] *= 1.01
    file = write(tmp_path / "n.gguf", "llama", said, tensors | {"rope_freqs.weight": factors})
    with pytest.raises(ModelError, match="rope_freqs"):
        load_backbone(file)


@pytest.mark.parametrize("kind", ["digits", "pieces"])
def test_a_file_makes_the_ids_of_the_tokenizer_it_was_made_of(kind: str, tmp_path: Path) -> None:
    tokenizer = digit_words() if kind == "digits" else sentence_pieces()
    original = tiny(LlamaForCausalLM, LlamaConfig, len(tokenizer))
    file = write(tmp_path / "m.gguf", "llama", metadata_of(original, tokenizer), tensors_of(original))
    loaded = load_backbone(file).tokenizer
    for text in TEXTS:
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special).input_ids
            assert loaded(text, add_special_tokens=special).input_ids == ids, text
            assert loaded.decode(ids) == tokenizer.decode(ids)
    assert loaded.chat_template == tokenizer.chat_template
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(loaded, f"{role}_token") == getattr(tokenizer, f"{role}_token")


def test_every_token_that_ends_an_answer_in_llama_cpp_ends_one_here(make: Make) -> None:
    file = make({"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2})
    loaded = load_backbone(file)
    assert loaded.model.generation_config.eos_token_id == [2, 0]
    assert loaded.tokenizer.eos_token_id == 2


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_blocks_become_the_very_values_they_stand_for(kind: str, make: Make, model: PreTrainedModel) -> None:
    kinds = {
        name: gguf.GGMLQuantizationType[kind]
        for name, values in tensors_of(model).items()
        if values.ndim == 2
    }
    file = make(kinds=kinds)
    loaded, stored = load_backbone(file), stored_weights(file, model)
    assert stored is not None
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    for name, weight in theirs.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), weight), name
        assert torch.equal(stored[name], weight), name
    assert not torch.equal(logits(loaded.model), logits(model))


def half(raw: bytes) -> float:
    return float(struct.unpack("<e", raw)[0])


def q4_0(block: bytes) -> list[float]:
    scale, codes = half(block[:2]), block[2:]
    return [scale * ((code & 15) - 8) for code in codes] + [scale * ((code >> 4) - 8) for code in codes]


def q4_1(block: bytes) -> list[float]:
    scale, least, codes = half(block[:2]), half(block[2:4]), block[4:]
    return [scale * (code & 15) + least for code in codes] + [scale * (code >> 4) + least for code in codes]


def q8_0(block: bytes) -> list[float]:
    return [half(block[:2]) * code for code in struct.unpack("<32b", block[2:])]


def q4_k(block: bytes) -> list[float]:
    scale, least, packed, codes = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
    found = []
    for part in range(8):
        if part < 4:
            step, low = packed[part] & 63, packed[part + 4] & 63
        else:
            step = (packed[part + 4] & 15) | ((packed[part - 4] >> 6) << 4)
            low = (packed[part + 4] >> 4) | ((packed[part] >> 6) << 4)
        some = codes[part // 2 * 32 : part // 2 * 32 + 32]
        found += [scale * step * ((code >> 4) if part % 2 else code & 15) - least * low for code in some]
    return found


def q6_k(block: bytes) -> list[float]:
    low, high, steps = block[:128], block[128:192], struct.unpack("<16b", block[192:208])
    scale, found = half(block[208:]), [0.0] * 256
    for half_block in range(2):
        for at in range(32):
            bits, nibbles = high[32 * half_block + at], low[64 * half_block :]
            codes = (
                (nibbles[at] & 15) | ((bits & 3) << 4),
                (nibbles[at + 32] & 15) | (((bits >> 2) & 3) << 4),
                (nibbles[at] >> 4) | (((bits >> 4) & 3) << 4),
                (nibbles[at + 32] >> 4) | (((bits >> 6) & 3) << 4),
            )
            for quarter, code in enumerate(codes):
                step = steps[8 * half_block + at // 16 + 2 * quarter]
                found[128 * half_block + 32 * quarter + at] = scale * step * (code - 32)
    return found


@pytest.mark.parametrize(
    ("kind", "size", "width", "halves", "decode"),
    [
        ("Q4_0", 18, 32, (0,), q4_0),
        ("Q4_1", 20, 32, (0, 2), q4_1),
        ("Q8_0", 34, 32, (0,), q8_0),
        ("Q4_K", 144, 256, (0, 2), q4_k),
        ("Q6_K", 210, 256, (208,), q6_k),
    ],
)
def test_blocks_of_any_bits_are_read_as_ggml_defines_them(
    kind: str,
    size: int,
    width: int,
    halves: tuple[int, ...],
    decode: Callable[[bytes], list[float]],
    tmp_path: Path,
    words: Any,
) -> None:
    original = tiny(LlamaForCausalLM, LlamaConfig, len(words), hidden_size=256, intermediate_size=256)
    tensors = tensors_of(original)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (256, 256 // width, size), dtype=np.uint8)
    for place in halves:  # scales are random numbers between 2^-10 and 2, of either sign
        scales = rng.uniform(2**-10, 2, blocks.shape[:2]) * rng.choice([-1, 1], blocks.shape[:2])
        blocks[:, :, place : place + 2] = scales.astype("<f2")[..., None].view(np.uint8)
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata_of(original, words).items():
        if value is not None:
            writer.add_key_value(
                key,
                value,
                *(
                    (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.get_type(value[0]))
                    if isinstance(value, list)
                    else (gguf.GGUFValueType.get_type(value),)
                ),
            )
    raw = blocks.reshape(256, -1)
    for name, values in tensors.items():
        if name == "blk.1.ffn_up.weight":
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = np.array([decode(bytes(block)) for block in blocks.reshape(-1, size)]).reshape(256, 256)
    found = load_backbone(path).model.get_parameter("model.layers.1.mlp.up_proj.weight").double().numpy()
    # Products of a half-precision scale and small whole numbers are exact; a sum is rounded once.
    assert np.abs(found - expected).max() <= 2**-22 * np.abs(expected).max()


def test_a_saved_model_opens_again_with_the_same_logits_and_ids(make: Make, tmp_path: Path) -> None:
    file = make(kinds={"blk.0.attn_q.weight": gguf.GGMLQuantizationType.Q4_1})
    loaded = load_backbone(file)
    with quiet():
        loaded.model.save_pretrained(tmp_path / "saved")
        loaded.tokenizer.save_pretrained(tmp_path / "saved")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    again = load_backbone(tmp_path / "saved")
    assert torch.equal(logits(plain), logits(loaded.model))
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert again.prompt_digest == loaded.prompt_digest
    for text in TEXTS:
        assert again.tokenizer(text).input_ids == loaded.tokenizer(text).input_ids
    assert again.tokenizer.chat_template == TEMPLATE


def test_a_file_of_half_precision_opens_in_the_type_that_loses_nothing(
    make: Make, model: PreTrainedModel
) -> None:
    matrices = [name for name, values in tensors_of(model).items() if values.ndim == 2]
    for kind, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.float32)):
        file = make(kinds=dict.fromkeys(matrices, gguf.GGMLQuantizationType[kind]))
        assert load_backbone(file, dtype=None).dtype == dtype
        assert load_backbone(file, dtype=torch.float16).dtype == torch.float16


def test_a_base_is_named_by_its_bytes_and_by_the_settings_that_decide_what_is_computed(make: Make) -> None:
    digest = load_backbone(make()).digest
    assert load_backbone(make(), dtype=torch.float16).digest == digest
    assert load_backbone(make({"general.name": "another", "llama.rope.dimension_count": 16})).digest == digest
    others: list[Backbone] = []
    weight = np.full(64, 1.25, np.float32)
    others.append(load_backbone(make(tensors={"output_norm.weight": weight})))
    others.append(load_backbone(make({"llama.rope.freq_base": 9999.0})))
    others.append(load_backbone(make(kinds={"blk.0.attn_q.weight": gguf.GGMLQuantizationType.F16})))
    assert len({digest, *(other.digest for other in others)}) == 4
    spoken = load_backbone(make({"tokenizer.ggml.eos_token_id": 0}))
    assert spoken.digest == digest
    assert spoken.prompt_digest != load_backbone(make()).prompt_digest


ROWS = np.zeros((300, 64), np.float32)
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no layers": ({"llama.block_count": None}, {}, "llama.block_count: it is missing"),
    "a text for a number": ({"llama.block_count": "two"}, {}, "llama.block_count: 'two' is no number"),
    "too many layers": ({"llama.block_count": 1 << 30}, {}, "1073741824 layers"),
    "another width": ({"llama.embedding_length": 128}, {}, "the metadata says"),
    "heads that do not divide": ({"llama.attention.head_count_kv": 3}, {}, "head_count_kv: 4 heads on 3"),
    "heads that do not fit the width": (
        {"llama.attention.head_count": 3, "llama.attention.head_count_kv": 3},
        {},
        "no configuration has these settings",
    ),
    "heads by layer": ({"llama.attention.head_count_kv": [2, 2]}, {}, "one value for each layer"),
    "experts": ({"llama.expert_count": 8}, {}, "mixture of experts"),
    "part of a head is turned": ({"llama.rope.dimension_count": 8}, {}, "8 of 16 dimensions"),
    "positions of another kind": ({"llama.rope.scaling.type": "longrope"}, {}, "'longrope' is not supported"),
    "a setting nobody knows": (
        {"llama.logit_scale": 2.0},
        {},
        "llama.logit_scale: this setting is not known",
    ),
    "a tensor too few": ({}, {"blk.1.ffn_up.weight": None}, r"lacks model.layers.1.mlp.up_proj.weight"),
    "a tensor too many": ({}, {"blk.1.ffn_up_exps.weight": ROWS}, "no tensor 'blk.1.ffn_up_exps.weight'"),
    "a layer too many": ({}, {"blk.2.attn_norm.weight": ROWS[0]}, "holds model.layers.2"),
    "a tensor of another shape": ({}, {"blk.1.ffn_up.weight": ROWS}, r"up_proj.weight is \(300, 64\)"),
    "fewer rows than tokens": ({}, {"token_embd.weight": ROWS, "output.weight": ROWS}, "300 rows"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, {}, "tokenizer.ggml.tokens: it is missing"),
    "two equal tokens": ({"tokenizer.ggml.tokens": ["a"] * 400}, {}, "two tokens are equal"),
    "types of other tokens": ({"tokenizer.ggml.token_type": [1, 2]}, {}, "2 types of"),
    "an end that is no token": ({"tokenizer.ggml.eos_token_id": 5000}, {}, "eos_token_id: there are"),
    "an unknown vocabulary": ({"tokenizer.ggml.model": "bert"}, {}, "'bert' is not supported"),
    "an unknown pre-tokenizer": ({"tokenizer.ggml.pre": "kimi-k2"}, {}, "'kimi-k2' is none of those known"),
    "no pre-tokenizer": ({"tokenizer.ggml.pre": None}, {}, "does not say how text is split"),
    "a merge of nothing": ({"tokenizer.ggml.merges": ["Ġ zz"]}, {}, "'Ġ zz' is no merge"),
    "a start to add that is not named": (
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
        {},
        "a token is to be added",
    ),
    "pieces without scores": ({"tokenizer.ggml.model": "llama"}, {}, "0 scores of"),
    "one part of several": ({"split.count": 3}, {}, "one of 3 parts"),
    "a piece without end": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["x" * 300],
            "tokenizer.ggml.token_type": [1],
        }
        | {"tokenizer.ggml.scores": [0.0], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
        | {"tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.padding_token_id": 0},
        {},
        "a piece of 300 characters",
    ),
    "weights that are no numbers": (
        {},
        {"output_norm.weight": np.full(64, np.nan, np.float32)},
        "NaN or infinite weights",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_a_base_is_refused_in_one_line(
    name: str, make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    said, tensors, message = WRONG[name]
    file = make(said, tensors)
    capfd.readouterr()
    with pytest.raises(ModelError, match=message) as caught:
        load_backbone(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_other_architectures_are_refused_with_those_that_work(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", "gpt2", {"gpt2.block_count": 1}, {"token_embd.weight": ROWS})
    with pytest.raises(ModelError, match=r"'gpt2' cannot be read.*supported: llama, qwen2, qwen3"):
        load_backbone(file)


def test_what_is_no_gguf_file_is_refused(make: Make, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("GGU")
    with pytest.raises(ModelError, match="neither a model folder nor a GGUF file"):
        load_backbone(text)
    with pytest.raises(ModelError, match="no such folder or file"):
        load_backbone("absent.gguf")
    file = make()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="lies outside the file"):
        load_backbone(file)


def test_weights_are_read_from_the_file_that_was_opened(make: Make, model: PreTrainedModel) -> None:
    file = make()
    stored = stored_weights(file, model)
    assert stored is not None
    before = stored["model.norm.weight"]
    other = file.with_name("other.gguf")
    other.write_bytes(bytes(file.stat().st_size))
    other.replace(file)
    assert torch.equal(stored["model.norm.weight"], before)
