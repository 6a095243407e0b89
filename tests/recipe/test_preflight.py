"""What the end of a run would refuse is refused before its first forward pass, and what was planned is written."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events
from edgetune.core.gguf_read import read_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.models.quiet import quiet
from edgetune.recipe import rehearsal
from edgetune.recipe.preflight import compression_of, preflight
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
WORDS = "hello world, this is a small text of some words. yes sir, 123 it is. tiếng Việt cà phê"
SMALL = {
    "data.records": 24, "data.held_out": 4, "data.calibration": 4, "data.max_tokens": 96,
    "federation.devices": 2, "federation.participation": 1, "federation.rounds": 1, "split.kind": "iid",
    "method.local_steps": 1, "method.pool": 16, "evaluation.max_new_tokens": 4, "evaluation.samples": 1,
}  # fmt: skip


def tokenizer(template: str | None = CHAT, pre_tokenizer: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [WORDS] * 3,
        trainers.BpeTrainer(
            vocab_size=384,
            show_progress=False,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>", chat_template=template
    )


def llama(**changes: Any) -> LlamaForCausalLM:
    settings: dict[str, Any] = {
        "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(model: Any = None, words: PreTrainedTokenizerFast | None = None) -> Path:
        folder = tmp_path / "model"
        with quiet():
            (model or llama()).save_pretrained(folder)
            (words or tokenizer()).save_pretrained(folder)
        return folder

    return write


def records(path: Path, *responses: str, count: int = 60) -> Path:
    rows = [
        {
            "instruction": f"say {i}",
            "context": "",
            "response": f"{responses[i % len(responses)]} {i}",
            "category": "a",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def options(**more: Any) -> list[str]:
    settings = SMALL | {name.replace("__", "."): value for name, value in more.items()}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def run(model: Path, tmp_path: Path, *responses: str, command: str = "run", **more: Any) -> int:
    data = records(tmp_path / "r.jsonl", *(responses or ("yes sir",)))
    words = [command] if command == "run" else [command, "fedkseed"]
    return execute(
        [
            *words,
            "--model",
            str(model),
            "--data",
            str(data),
            "--out",
            str(tmp_path / "out"),
            "-q",
            *options(**more),
        ]
    )


def prepared_for(model: Path, tmp_path: Path, *responses: str, **more: Any) -> Prepared:
    data = records(tmp_path / "r.jsonl", *(responses or ("yes sir",)))
    overrides = options(**more)[1::2]
    return prepare(load_recipe(None, overrides, model__source=str(model), data__source=str(data)))


def nothing_was_done(tmp_path: Path) -> bool:
    return (
        not (tmp_path / "out" / "events.jsonl").exists() and not (tmp_path / "out" / "tuned.ledger").exists()
    )


def unknown_words() -> PreTrainedTokenizerFast:
    return tokenizer(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\S+ ?|\s"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )


def lower_case() -> PreTrainedTokenizerFast:
    found = tokenizer()
    found.backend_tokenizer.normalizer = normalizers.Lowercase()
    return found


OPT = OPTConfig(
    vocab_size=384, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, bos_token_id=0,
    max_position_embeddings=256, eos_token_id=1, pad_token_id=1, word_embed_proj_dim=64,
)  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], int, str]] = {
    "a family": (lambda: OPTForCausalLM(OPT), tokenizer, {}, 4, "'opt' cannot be written"),
    "an activation": (lambda: llama(hidden_act="gelu"), tokenizer, {}, 4, "activation 'gelu'"),
    "a rope scaling": (
        lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        tokenizer,
        {},
        4,
        "rope scaling 'dynamic'",
    ),
    "a normaliser": (llama, lower_case, {}, 4, "normalizer Lowercase"),
    "a pre-tokenizer": (llama, unknown_words, {}, 4, "none of llama.cpp's makes the same tokens"),
    "a compression method": (llama, tokenizer, {"compression__name": "opqt"}, 2, "did you mean 'optq'"),
    "a pre-tokenizer that is none": (llama, tokenizer, {"export__pre_tokenizer": "qwen7"}, 4, "choose from"),
    "a pre-tokenizer that is another's": (
        llama,
        tokenizer,
        {"export__pre_tokenizer": "smollm"},
        4,
        "makes other tokens of a text",
    ),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_the_end_would_refuse_is_refused_before_the_run(
    kind: str, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, words, settings, code, what = REFUSED[kind]
    folder = save(model(), words())
    assert run(folder, tmp_path, "yes 12345 sir", **settings) == code
    assert what in capsys.readouterr().err
    assert nothing_was_done(tmp_path)


def test_a_full_disk_is_noticed_before_the_run(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert run(save(), tmp_path) == 6
    assert "there are 1,000" in capsys.readouterr().err
    assert nothing_was_done(tmp_path)


def test_tuning_alone_goes_on_and_says_that_there_will_be_no_file(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(save(words=lower_case()), tmp_path, command="federate") == 0
    assert "cannot become a GGUF file" in capsys.readouterr().out
    events = list(read_events(tmp_path / "out" / "events.jsonl"))
    assert ["Lowercase" in event["why"] for event in events if event["event"] == "unexportable"] == [True]


def test_a_fitting_pre_tokenizer_is_named_where_none_is_known(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The words of GPT-2 by another regex: of these records it makes the same tokens.
    words = tokenizer(
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    folder = save(words=words)
    assert run(folder, tmp_path) == 4
    said = capsys.readouterr().err
    assert "--set export.pre_tokenizer=" in said
    name = said.partition("--set export.pre_tokenizer=")[2].split(")")[0].strip()
    assert run(folder, tmp_path, export__pre_tokenizer=name) == 0
    assert read_gguf(tmp_path / "out" / "model.gguf").metadata["tokenizer.ggml.pre"] == name


def test_what_was_planned_is_what_is_written(save: Save, tmp_path: Path) -> None:
    folder = save(llama(tie_word_embeddings=True))
    prepared = prepared_for(folder, tmp_path)
    plan, event = preflight(prepared, tmp_path / "model.gguf", compression_of(prepared.recipe))
    assert run(folder, tmp_path) == 0
    file = read_gguf(tmp_path / "out" / "model.gguf")
    kinds = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0"}
    assert [(one.name, kinds[one.kind], one.shape) for one in file.tensors] == [
        (one.name, one.type, one.shape) for one in plan.tensors
    ]
    start = min(one.offset for one in file.tensors)
    assert file.path.stat().st_size == start + plan.tensor_bytes
    assert event.size_bytes == plan.tensor_bytes
    words = plan.vocabulary
    expected = {
        "general.architecture": plan.architecture,
        "tokenizer.ggml.model": words.model,
        "tokenizer.ggml.pre": words.pre,
        "tokenizer.chat_template": words.chat_template,
        **{f"{plan.architecture}.{key}": value for key, value in plan.parameters.items()},
        **{f"tokenizer.ggml.{role}_token_id": index for role, index in words.ids.items()},
        **{f"tokenizer.ggml.{flag}": value for flag, value in words.flags.items()},
    }
    stored = {key: value for key, value in file.metadata.items() if key in expected}
    assert stored == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in expected.items()
    }
    extra = set(file.metadata) - set(expected)
    assert {key for key in extra if not key.startswith("edgetune.")} == {
        "general.name",
        "general.file_type",
        "general.quantization_version",
    }
    assert file.array("tokenizer.ggml.tokens") == list(words.tokens)
    assert file.array("tokenizer.ggml.token_type") == list(words.types)
    assert file.array("tokenizer.ggml.merges") == list(words.merges or ())


def test_every_text_of_the_data_is_tried(save: Save, tmp_path: Path) -> None:
    prepared = prepared_for(save(), tmp_path)
    _, event = preflight(prepared, tmp_path / "model.gguf", None)
    assert event.texts == event.texts_in_all == 2 * (4 + 4 + 24)
    assert event.composed == 0


def test_of_long_data_the_records_that_are_scored_come_first(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "CHARACTERS", 200)
    prepared = prepared_for(save(), tmp_path)
    _, event = preflight(prepared, tmp_path / "model.gguf", None)
    assert event.texts_in_all == 2 * (4 + 4 + 24)
    assert 2 * (4 + 4) <= event.texts < event.texts_in_all


def test_decomposed_characters_are_counted_and_agree(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tokenizer()
    words.backend_tokenizer.normalizer = normalizers.NFC()
    folder = save(words=words)
    apart = unicodedata.normalize("NFD", "tiếng Việt")
    assert run(folder, tmp_path, "yes sir", apart) == 0
    (planned,) = [one for one in read_events(tmp_path / "out" / "events.jsonl") if one["event"] == "planned"]
    assert 0 < planned["composed"] < planned["texts"]


def test_a_base_model_gets_the_template_of_its_prompt(save: Save, tmp_path: Path) -> None:
    words = tokenizer(template=None)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    folder = save(words=words)
    assert run(folder, tmp_path, data__max_tokens=200) == 0
    prepared = prepared_for(folder, tmp_path, data__max_tokens=200)
    record, example = prepared.held_out[0], prepared.held_out_examples[0]
    with LlamaCpp(tmp_path / "out" / "model.gguf") as file:
        asked = [{"role": "user", "content": record.instruction}]
        ids = file.tokenise(file.render(asked))
        assert tuple(ids) == example.input_ids[: example.response_start]
        assert file.chat(asked, max_new_tokens=2) == file.generate(ids, 2)


def test_a_record_that_spells_a_control_token_does_not_stop_the_run(save: Save, tmp_path: Path) -> None:
    assert run(save(), tmp_path, "yes sir", "he said <|user|> twice") == 0
    (planned,) = [one for one in read_events(tmp_path / "out" / "events.jsonl") if one["event"] == "planned"]
    assert 0 < planned["texts"] < planned["texts_in_all"]
