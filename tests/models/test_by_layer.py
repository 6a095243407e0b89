"""Folders of models whose layers differ in width: written whole, loaded as written, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.groups import attention, cut, feed_forward
from edgetune.compress.structured.settled import settle, widths_in
from edgetune.core.errors import ModelError, OutputError
from edgetune.core.removed import ATTENTION, FEED_FORWARD, remove
from edgetune.core.widths import Widths
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import embedded_folder
from edgetune.models.saving import save_model, stored_dtype

IDS = torch.randint(5, 1200, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder of the embedded model with two layers cut, one without attention and one without a network."""
    base = load_backbone("embedded")
    model, folder = base.model, tmp_path_factory.mktemp("narrow") / "m"
    blocks = decoder_blocks(model)
    cut(blocks[0], attention(model.config, blocks[0]), torch.tensor([1]))
    cut(blocks[1], feed_forward(model.config, blocks[1]), torch.arange(0, 512, 4))
    remove(blocks[2], ATTENTION, 2)
    remove(blocks[3], FEED_FORWARD, 3)
    settle(model, widths_in(model))
    save_model(model, base.tokenizer, folder, words=base.folder)
    return folder, model


@pytest.fixture
def copied(narrow: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(narrow[0], tmp_path / "m"))


def test_a_folder_loads_as_it_was_written(narrow: tuple[Path, Any]) -> None:
    folder, model = narrow
    loaded = load_backbone(folder)
    assert widths_in(loaded.model) == Widths((512, 128, 512, 0), (2, 4, 0, 4), (1, 2, 0, 2))
    for (name, one), (other, two) in zip(
        sorted(model.named_parameters()), sorted(loaded.model.named_parameters()), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert loaded.prompt_digest == load_backbone("embedded").prompt_digest


def test_widths_are_part_of_the_name_of_a_base(narrow: tuple[Path, Any], copied: Path) -> None:
    assert load_backbone(copied).digest == load_backbone(narrow[0]).digest != load_backbone("embedded").digest


def test_answers_go_on_from_a_cache(narrow: tuple[Path, Any]) -> None:
    model = load_backbone(narrow[0]).model
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 4}
    with_cache = model.generate(IDS, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(IDS, use_cache=False, **settings))


def test_others_refuse_the_folder_instead_of_filling_in(narrow: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match="edgetune_by_layer"):
        AutoModelForCausalLM.from_pretrained(narrow[0])


def _change(file: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda said: said.pop("layer_widths"), "names model_type"),
        (lambda said: said.update(model_type="no_such"), "cannot use this configuration"),
        (lambda said: said["layer_widths"]["heads"].pop(), "three lists of one length"),
        (lambda said: said["layer_widths"].update(heads=[-2, 4, 0, 4]), "numbers from 0"),
        (lambda said: said["layer_widths"].update(heads=[2, 4, 4, 4]), "cannot share 0"),
        (lambda said: said["layer_widths"].update(heads=[1, 4, 0, 4]), "share"),
        (lambda said: said["layer_widths"].update(feed_forward=[512, 64, 512, 0]), "another shape|tensors"),
        (lambda said: said["layer_widths"].update(feed_forward=[512, 128, 512, 32]), "lack tensors"),
        (lambda said: said["layer_widths"].update(feed_forward=[0, 128, 512, 0]), "does not have"),
        (
            lambda said: said["layer_widths"].update(feed_forward=[10**9, 128, 512, 0]),
            "another shape|tensors",
        ),
        (lambda said: said["layer_widths"].update(feed_forward="all"), "lists"),
    ],
)
def test_widths_that_do_not_fit_are_refused(copied: Path, edit: Callable[[Any], Any], what: str) -> None:
    _change(copied / "widths.json", edit)
    with pytest.raises(ModelError, match=what):
        load_backbone(copied)


def test_a_file_of_widths_beside_an_ordinary_configuration_is_refused(copied: Path) -> None:
    _change(copied / "config.json", lambda said: said.update(model_type="llama"))
    with pytest.raises(ModelError, match="is of type 'llama'"):
        load_backbone(copied)


def test_a_folder_is_replaced_and_keeps_no_widths_of_an_older_model(copied: Path) -> None:
    base = load_backbone("embedded")
    save_model(base.model.half(), base.tokenizer, copied, words=base.folder)
    again = load_backbone(copied)
    assert not (copied / "widths.json").exists()
    assert stored_dtype(copied) == stored_dtype(embedded_folder()) == torch.float16
    assert again.digest == base.digest
    assert {one.stat().st_mode & 0o777 for one in copied.glob("*.safetensors")} == {
        (copied / "tokenizer.json").stat().st_mode & 0o777
    }


def test_shards_of_another_model_are_not_mixed_in(copied: Path) -> None:
    (copied / "model-00001-of-00002.safetensors").write_bytes(b"")
    base = load_backbone("embedded")
    before = (copied / "config.json").read_bytes()
    with pytest.raises(OutputError, match="of another model"):
        save_model(base.model, base.tokenizer, copied)
    assert (copied / "config.json").read_bytes() == before


def test_a_writer_that_fails_leaves_what_was_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_backbone("embedded")
    before = load_backbone(copied).digest

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base.model, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(base.model, base.tokenizer, copied)
    assert load_backbone(copied).digest == before
    assert not list(copied.glob(".edgetune-*"))
