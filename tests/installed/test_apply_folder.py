from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import edgetune
from edgetune.core.errors import DigestError, ModelError, OutputError
from edgetune.core.ledger import read_ledger, write_ledger
from edgetune.installed.folder import FolderBase
from edgetune.installed.making import write_copy
from edgetune.models.backbone import load_backbone
from ledgers import KINDS, make

LOW_RANK = ("lora", "frozen_a", "mezo_lora")


def applied(folder: Path, ledger: Path, out: Path) -> dict[str, torch.Tensor]:
    write_copy(FolderBase(folder), [ledger], out)
    return dict(load_backbone(out).model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
def test_the_digest_is_that_of_the_loaded_model(save_tiny: Callable[..., Path], family: str) -> None:
    folder = save_tiny(family)
    assert FolderBase(folder).digest == load_backbone(folder).digest


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in LOW_RANK])
def test_a_float32_folder_holds_the_bits_of_the_tuned_model(
    save_tiny: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    folder = save_tiny("llama")
    ledger = make(tmp_path / "a.ledger", folder, kind)
    found = applied(folder, ledger, tmp_path / "out")
    expected = dict(edgetune.load(folder, ledger).named_parameters())
    base = dict(load_backbone(folder).model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], base[name]) for name in base)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", LOW_RANK)
def test_factors_are_folded_in_as_peft_does_to_the_last_bit_but_one(
    save_tiny: Callable[..., Path], tmp_path: Path, family: str, kind: str
) -> None:
    folder = save_tiny(family)
    ledger = make(tmp_path / "a.ledger", folder, kind, size=0.05)
    found = applied(folder, ledger, tmp_path / "out")
    base = dict(load_backbone(folder).model.named_parameters())
    for name, expected in edgetune.load(folder, ledger).named_parameters():
        torch.testing.assert_close(found[name], expected, rtol=3e-7, atol=3e-8)
        moved = not torch.equal(found[name], base[name])
        assert moved == (
            name.endswith("weight")
            and expected.dim() == 2
            and "embed" not in name
            and "wte" not in name
            and "wpe" not in name
            and "lm_head" not in name
        )


def test_a_tied_head_that_is_stored_moves_with_the_embeddings(
    save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tiny("qwen2")
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    ledger = make(tmp_path / "a.ledger", folder)
    write_copy(FolderBase(folder), [ledger], tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    model = load_backbone(tmp_path / "out").model
    assert torch.equal(model.lm_head.weight, edgetune.load(folder, ledger).lm_head.weight)


def test_a_half_precision_folder_rounds_each_weight_once(
    save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tiny("llama")
    stored = load_file(folder / "model.safetensors")
    half = {name: one.to(torch.bfloat16) for name, one in stored.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    ledger = make(tmp_path / "a.ledger", folder)
    write_copy(FolderBase(folder), [ledger], tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in edgetune.load(folder, ledger).named_parameters():
        assert torch.equal(found[name], expected.to(torch.bfloat16))


def test_two_ledgers_add_up(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_tiny("llama")
    one, two = (make(tmp_path / f"{seed}.ledger", folder, "pool", seed=seed) for seed in (1, 2))
    write_copy(FolderBase(folder), [one, two], tmp_path / "both")
    found = load_file(tmp_path / "both" / "model.safetensors")
    base = dict(load_backbone(folder).model.named_parameters())
    changes = [dict(edgetune.load(folder, path).named_parameters()) for path in (one, two)]
    for name, weight in base.items():
        expected = weight + sum(tuned[name] - weight for tuned in changes)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=3e-7)
    said = json.loads((tmp_path / "both" / "edgetune.json").read_text())
    assert said["ledger_digest"] == " ".join(read_ledger(path).digest for path in (one, two))


def test_a_ledger_that_replaces_weights_lies_on_the_base_alone(
    save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tiny("llama")
    pool, full = make(tmp_path / "p.ledger", folder), make(tmp_path / "f.ledger", folder, "full")
    with pytest.raises(ModelError, match="nothing beneath it"):
        write_copy(FolderBase(folder), [pool, full], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_copy(FolderBase(folder), [full, pool], tmp_path / "out")


def test_what_does_not_come_out_as_recorded_is_refused_and_leaves_nothing(
    save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    folder = save_tiny("llama")
    path = make(tmp_path / "a.ledger", folder)
    write_ledger(path, replace(read_ledger(path), weights_digest="0" * 64))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DigestError, match="the rebuilt weights"):
        write_copy(FolderBase(folder), [path], tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_another_base_and_a_full_folder_are_refused(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder, other = save_tiny("llama"), save_tiny("llama", seed=1)
    ledger = make(tmp_path / "a.ledger", folder)
    with pytest.raises(DigestError, match="belongs to base"):
        write_copy(FolderBase(other), [ledger], tmp_path / "out")
    with pytest.raises(OutputError, match="something here already"):
        write_copy(FolderBase(folder), [ledger], other)
