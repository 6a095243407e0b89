"""What `load(...).save_pretrained` leaves opens in transformers alone: the same tokens, template, ends and weights."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import edgetune
from edgetune.export.gguf_file import write_gguf
from edgetune.models.backbone import load_backbone
from edgetune.models.quiet import quiet

TEXT = "Where does Mira live?\n  It is 12 miles, née.\x00"
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"


def _tuned(base: Path | str, ledger: Path, method: str = "mezo") -> Any:
    with edgetune.Tuner(base, method, learning_rate=1e-3) as tuner:
        tuner.step([("say a", "yes sir")])
        tuner.save(ledger)
    return edgetune.load(base, ledger)


@pytest.fixture
def base(save_tiny: Callable[..., Path]) -> Path:
    folder = save_tiny()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    GenerationConfig(eos_token_id=[0, 7], pad_token_id=0, max_length=33).save_pretrained(folder)
    return folder


def test_the_folder_opens_in_transformers_alone(base: Path, tmp_path: Path) -> None:
    model, out = _tuned(base, tmp_path / "m.ledger"), tmp_path / "out"
    model.save_pretrained(out)
    with quiet():
        again, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ours = AutoTokenizer.from_pretrained(base)
    assert words(TEXT).input_ids == ours(TEXT).input_ids == model.tokenizer(TEXT).input_ids
    asked = [{"role": "user", "content": "hi"}]
    assert words.apply_chat_template(asked, tokenize=False) == "[user] hi"
    assert (words.eos_token, words.pad_token) == (ours.eos_token, ours.pad_token)
    assert (again.generation_config.eos_token_id, again.generation_config.max_length) == ([0, 7], 33)
    moved = dict(model.named_parameters())
    assert all(torch.equal(one, moved[name]) for name, one in again.named_parameters())


@pytest.mark.parametrize("kind", ["embedded", "gguf"])
def test_the_embedded_model_and_a_gguf_base_are_saved_whole(tmp_path: Path, kind: str) -> None:
    source: Path | str = "embedded"
    if kind == "gguf":
        pytest.importorskip("gguf")
        backbone = load_backbone("embedded")
        source = write_gguf(
            tmp_path / "b.gguf", backbone.model, backbone.tokenizer, quantised={}, float_type="F32"
        )
    _tuned(source, tmp_path / "m.ledger").save_pretrained(tmp_path / "out")
    there, here = load_backbone(tmp_path / "out"), load_backbone(source)
    assert there.tokenizer(TEXT).input_ids == here.tokenizer(TEXT).input_ids
    assert there.tokenizer.get_vocab() == here.tokenizer.get_vocab()
    assert there.tokenizer.chat_template == here.tokenizer.chat_template
    assert there.model.generation_config.eos_token_id == here.model.generation_config.eos_token_id


def test_a_tuners_model_and_what_peft_saves_have_their_tokenizer_too(base: Path, tmp_path: Path) -> None:
    with edgetune.Tuner(base, "mezo", learning_rate=1e-3) as tuner:
        tuner.model().save_pretrained(tmp_path / "tuner")
    assert AutoTokenizer.from_pretrained(tmp_path / "tuner")(TEXT).input_ids
    prefix = _tuned(base, tmp_path / "p.ledger", "mezo_prefix")
    with quiet():
        prefix.save_pretrained(str(tmp_path / "prefix"))
    assert (tmp_path / "prefix" / "adapter_config.json").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "prefix").chat_template == TEMPLATE


def test_a_copy_saves_itself(base: Path, tmp_path: Path) -> None:
    model = _tuned(base, tmp_path / "m.ledger")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight.zero_()
    other.tokenizer.chat_template = "changed"
    other.save_pretrained(tmp_path / "copy")
    assert not AutoModelForCausalLM.from_pretrained(tmp_path / "copy").get_input_embeddings().weight.any()
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == "changed"
    assert (model.tokenizer.chat_template, bool(model.get_input_embeddings().weight.any())) == (
        TEMPLATE,
        True,
    )
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    torch.load(file, weights_only=False).save_pretrained(tmp_path / "pickled")
    assert (tmp_path / "pickled" / "model.safetensors").is_file()


def test_an_upload_has_the_tokenizer_and_other_processes_write_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[str]()

    def upload(self: Any, folder: Any, repo: str, timestamps: Any, **_: Any) -> None:
        sent.extend(f"{repo}: {one.name}" for one in Path(folder).iterdir() if one.name not in timestamps)

    monkeypatch.setattr("transformers.utils.hub.PushToHubMixin._upload_modified_files", upload)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, id, **_: type("Made", (), {"repo_id": id})
    )
    monkeypatch.setattr(
        "transformers.modeling_utils.create_and_tag_model_card", lambda *_, **__: _Card(), raising=False
    )
    model = _tuned(base, tmp_path / "m.ledger")
    model.save_pretrained(tmp_path / "sent", push_to_hub=True, repo_id="me/it")
    assert {"me/it: model.safetensors", "me/it: tokenizer.json", "me/it: chat_template.jinja"} <= set(sent)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not list((tmp_path / "other").glob("tokenizer*"))


class _Card:
    def save(self, path: Any) -> None:
        Path(path).write_text("card")
