"""Ledgers along directions of rank one as adapters: peft and llama.cpp compute the replayed model's predictions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgetune
from edgetune.core.errors import ModelError
from edgetune.core.ledger import read_ledger
from edgetune.core.update import Projected
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.lora import Adapter
from edgetune.installed.adapter import write_gguf_adapter, write_peft_adapter
from edgetune.installed.base import Base
from edgetune.installed.folder import FolderBase
from edgetune.installed.gguf import GgufBase
from edgetune.installed.left_out import divergence_without
from edgetune.installed.parts import Parts, parts_of
from edgetune.models.backbone import load_backbone
from edgetune.models.source import find_model
from ledgers import make

TEXT = "The station at the harbour measures the wind, and the wind turns."
IDS = torch.arange(20).view(1, -1)


def read(base: Base, ledger: Path) -> Parts:
    return parts_of(read_ledger(ledger), base, where=ledger)


def placed(base: Base, ledger: Path, out: Path) -> Any:
    """The base in peft, with the adapter on."""
    import peft

    assert not write_peft_adapter(out, read(base, ledger), base, read_ledger(ledger)).left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft corrects its own settings, and warns of tied layers
        return peft.PeftModel.from_pretrained(load_backbone(base.path).model, str(out)).eval()


def partly(base: Base, parts: Parts, left: tuple[str, ...]) -> Any:
    """The replayed model, but for some parameters as the base has them."""
    model = load_backbone(base.path).model
    for name, weight in model.named_parameters():
        if parts.change.touches(name) and name not in left:
            weight.data = parts.change.of(name, base.read(name))
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2", "gemma"])
@pytest.mark.parametrize("kind", ["low", "low_scaled", "low_wide", "low_fresh", "low_linear"])
def test_peft_computes_what_the_replayed_weights_do(
    save_tiny: Callable[..., Path], tmp_path: Path, family: str, kind: str
) -> None:
    folder = save_tiny(family)
    # The sum of 64 coefficients of .01 moves each weight by .08, four times what the tiny models' weights are.
    ledger = make(tmp_path / "a.ledger", folder, kind, size=0.01)
    model = placed(FolderBase(folder), ledger, tmp_path / "adapter")
    with torch.no_grad():
        found = model(input_ids=IDS).logits
        expected = edgetune.load(folder, ledger)(input_ids=IDS).logits
        plain = load_backbone(folder).model(input_ids=IDS).logits
    # Sums of 32 and 64 products in another order; the largest error measured is 5e-6 of the largest logit.
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (found - plain).abs().max() > 1e-2 * expected.abs().max()


def test_factors_sum_to_what_the_replay_adds(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_tiny("gpt2")
    base = FolderBase(folder)
    parts = read(base, make(tmp_path / "a.ledger", folder, "low_scaled"))
    for layer, (left, right) in parts.factors.items():
        name = f"{layer}.weight" if layer != parts.tied else "transformer.wte.weight"
        zeros = torch.zeros(base.outline.get_parameter(name).shape)
        change = parts.change.of(name, zeros)
        assert torch.equal(left @ right, change.T if "c_" in layer else change)
    for layer, (left, right) in parts.tables.items():
        zeros = torch.zeros(base.outline.get_submodule(layer).weight.shape)
        assert torch.equal(left @ right, parts.change.of(f"{layer}.weight", zeros))
    assert parts.tied == "lm_head"
    assert set(parts.tables) == {"transformer.wte", "transformer.wpe"}


@pytest.mark.parametrize(
    ("kind", "left"),
    [("low_linear", 0), ("low", 10)],
)
@pytest.mark.parametrize(("stored", "far"), [("F32", 1e-3), ("Q4_0", 0.2)])
def test_llama_cpp_computes_all_but_what_is_said_to_be_left_out(
    exported: Callable[[str], Path],
    ledger: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    left: int,
    stored: str,
    far: float,
) -> None:
    pytest.importorskip("xllamacpp")
    path = ledger(kind, size=2e-3)
    file = tmp_path / "a.gguf"
    base = FolderBase(find_model("embedded"))
    parts = read(base, path)
    missing = write_gguf_adapter(file, parts, base, read_ledger(path)).left
    assert len(missing) == left
    assert left == 0 or "model.embed_tokens.weight" in missing
    held = GgufBase(exported(stored))
    ids = load_backbone("embedded").tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        tuned, plain = (
            partly(held, parts, names)(torch.tensor([ids])).logits[0].log_softmax(-1)
            for names in (missing, tuple(held.names()))
        )
    with LlamaCpp(exported(stored), exact=True, context=128, adapters=[Adapter(file)]) as engine:
        found = engine.log_probabilities(ids, 1)
    distance = [
        max(abs(one - float(logits[t, ids[t + 1]])) for t, one in enumerate(found))
        for logits in (tuned, plain)
    ]
    assert distance[0] < far < distance[1] / 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_head_of_its_own_lets_llama_cpp_have_the_embeddings(
    save_tiny: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    pytest.importorskip("xllamacpp")
    folder = save_tiny(family)
    path = make(tmp_path / "a.ledger", folder, "low", size=2e-3)
    base, backbone = FolderBase(folder), load_backbone(folder)
    file, model = tmp_path / "a.gguf", tmp_path / "model.gguf"
    parts = read(base, path)
    if family == "opt":
        with pytest.raises(ModelError, match="cannot be written as GGUF"):
            write_gguf_adapter(file, parts, base, read_ledger(path))
        return
    left = write_gguf_adapter(file, parts, base, read_ledger(path)).left
    assert (f"{'model.embed_tokens' if family == 'llama' else 'transformer.wte'}.weight" in left) == (
        family == "gpt2"
    )
    assert ("transformer.wpe.weight" in left) == (family == "gpt2")
    write_gguf(
        model,
        backbone.model,
        backbone.tokenizer,
        quantised={},
        float_type="F32",
        pre_tokenizer="gpt-2",
    )
    ids = list(range(1, 30))
    with torch.no_grad():
        expected = partly(base, parts, left)(torch.tensor([ids])).logits[0].log_softmax(-1)
    with LlamaCpp(model, exact=True, context=64, adapters=[Adapter(file)]) as engine:
        found = engine.log_probabilities(ids, 1)
    assert max(abs(one - float(expected[t, ids[t + 1]])) for t, one in enumerate(found)) < 1e-3


def test_a_file_of_the_base_names_the_layers_as_well_as_its_folder(
    exported: Callable[[str], Path], ledger: Callable[..., Path], tmp_path: Path
) -> None:
    path = ledger("low_linear")
    written = []
    for base in (FolderBase(find_model("embedded")), GgufBase(exported("Q4_0"))):
        file = tmp_path / f"{len(written)}.gguf"
        assert not write_gguf_adapter(file, read(base, path), base, read_ledger(path)).left
        written.append(file.read_bytes())
    assert written[0] == written[1]


def test_what_is_left_out_is_measured(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_tiny("llama")
    base = FolderBase(folder)
    parts = read(base, make(tmp_path / "a.ledger", folder, "low", size=1e-2))
    text = tmp_path / "a.txt"
    text.write_text(40 * TEXT)
    none, vectors, tables = (
        divergence_without(base, parts.change, left, text)
        for left in ((), parts.whole, ["model.embed_tokens.weight"])
    )
    assert none.every == 0
    assert 0 < vectors.every < tables.every
    assert divergence_without(base, parts.change, ()).tokens > 100


def test_the_folder_says_what_peft_needs_in_few_words(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_tiny("gpt2")
    placed(FolderBase(folder), make(tmp_path / "a.ledger", folder, "low"), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["target_modules"] == ["c_attn", "c_fc", "c_proj", "lm_head", "wpe", "wte"]
    assert said["modules_to_save"] == ["ln_1", "ln_2", "ln_f"]
    assert (said["r"], said["lora_alpha"], said["bias"], said["fan_in_fan_out"]) == (8, 8.0, "all", True)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("low_rounded", r"rounded to Q8_0.*edgetune apply"),
        ("low_bitfit", r"moves no matrix.*edgetune apply"),
        ("pool", r"no low-rank factors.*rank one"),
    ],
)
def test_what_no_adapter_can_hold_is_refused(
    save_tiny: Callable[..., Path], tmp_path: Path, kind: str, said: str
) -> None:
    folder = save_tiny("llama")
    with pytest.raises(ModelError, match=said):
        read(FolderBase(folder), make(tmp_path / "a.ledger", folder, kind))


def test_more_fresh_directions_than_a_matrix_has_rank_are_refused(
    save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    folder = save_tiny("llama")
    base = FolderBase(folder)
    ledger = read_ledger(make(tmp_path / "a.ledger", folder, "low_fresh"))
    many = Projected(np.arange(99), np.full(99, 1e-3, np.float32))
    with pytest.raises(ModelError, match=r"rank 99.*larger than the model"):
        parts_of(replace(ledger, update=many), base)
    with pytest.raises(ModelError, match="changes nothing yet"):
        parts_of(replace(ledger, update=Projected.none()), base)
