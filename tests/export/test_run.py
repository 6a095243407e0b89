from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toys import byte_level, tiny_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from edgetune.core.errors import MissingExtraError, ModelError
from edgetune.core.gguf_read import read_metadata
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import ContextFullError, LlamaCpp


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def path(
    tmp_path_factory: pytest.TempPathFactory, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Path:
    file = tmp_path_factory.mktemp("run") / "m.gguf"
    return write_gguf(file, model, tokenizer, quantised={}, float_type="F32")


@pytest.fixture(scope="module")
def llama(path: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(path) as loaded:
        yield loaded


def reference(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_log_probabilities_of_unlikely_special_and_broken_tokens(
    llama: LlamaCpp, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    # The emoji is split into bytes, each ending inside a character; 1 is the end token.
    ids = [9, *tokenizer("🙂 é").input_ids, 1, 0, 200, 2, 383, 1]
    expected = reference(model, ids)
    assert int((expected[:-1].argmax(-1) == torch.tensor(ids[1:])).sum()) < 3, "mostly unlikely tokens"
    found = llama.log_probabilities(ids, 1)
    wanted = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found == pytest.approx(wanted.tolist(), abs=0.02)
    assert llama.log_probabilities(ids, 5) == pytest.approx(found[4:], abs=1e-4)


def test_what_cannot_be_scored_is_refused(llama: LlamaCpp) -> None:
    with pytest.raises(ModelError, match="cannot be scored"):
        llama.log_probabilities([1, 2], 0)
    with pytest.raises(ModelError, match="cannot be scored"):
        llama.log_probabilities([5] * 1000, 1)


def test_numbers_that_overflow_are_said(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(1e38)
        broken.lm_head.weight.mul_(1e4)
    file = write_gguf(tmp_path / "m.gguf", broken, tokenizer, quantised={}, float_type="F32")
    with LlamaCpp(file) as loaded, pytest.raises(ModelError, match="probability of token 3 is no number"):
        loaded.log_probabilities([2, 3], 1)


def test_generation_is_greedy(
    llama: LlamaCpp, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = tokenizer("The quick").input_ids
    with torch.no_grad():
        expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=1)
    text = tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)
    assert llama.generate(ids, 8).rstrip("\ufffd") == text.rstrip("\ufffd")
    assert llama.generate("The quick", 8) == llama.generate(ids, 8)


def test_chat_uses_the_files_own_template(llama: LlamaCpp) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert llama.render(messages) == "<|begin|><|user|>hi<|end|><|assistant|>"
    pieces: list[str] = []
    answer = llama.chat(messages, max_new_tokens=6, on_text=lambda piece: pieces.append(piece) is not None)
    assert "".join(pieces) == answer == llama.generate(llama.render(messages), 6)
    assert len(answer) > 0


def test_what_a_listener_raises_comes_back(llama: LlamaCpp) -> None:
    def interrupt(piece: str) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama.chat([{"role": "user", "content": "hi"}], on_text=interrupt)


def test_a_long_conversation_and_a_missing_template_are_typed_errors(llama: LlamaCpp, tmp_path: Path) -> None:
    with pytest.raises(ContextFullError):
        llama.chat([{"role": "user", "content": "hello " * 500}])
    bare = byte_level()
    bare.chat_template = None
    with (
        LlamaCpp(write_gguf(tmp_path / "bare.gguf", tiny_llama(), bare, quantised={})) as plain,
        pytest.raises(ModelError, match="no chat template"),
    ):
        plain.chat([{"role": "user", "content": "hi"}])


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Listen to SIGINT also where a shell started the tests in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_the_terminal_stays_silent_and_keeps_its_signals(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with LlamaCpp(path) as loaded:
        loaded.generate("hi", 2)
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ModelError, match="closed"):
        loaded.generate("hi", 1)


def test_damaged_and_missing_files_are_typed_errors(path: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(path.read_bytes()[:2000])
    for file in (torn, tmp_path / "none.gguf", Path(__file__)):
        with pytest.raises(ModelError):
            LlamaCpp(file)


def test_a_missing_library_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[deploy\]"):
        LlamaCpp(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[deploy\]"):
        read_metadata(path)
