"""Folders with packed layers as bases of ledgers: what their codes cannot hold is refused, the rest works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edgetune
from edgetune.cli.app import execute
from edgetune.core.errors import DigestError, ModelError
from edgetune.core.ledger import read_ledger
from edgetune.installed.adapter import write_peft_adapter
from edgetune.installed.making import write_copy
from edgetune.installed.packed import PackedFolderBase, folder_base
from edgetune.installed.parts import parts_of
from edgetune.models.backbone import load_backbone
from ledgers import make
from packed_folders import compressed_layer, compressed_said, gptq_layer, gptq_said, pack_folder

KINDS = {"gptq": (gptq_said, gptq_layer), "compressed-tensors": (compressed_said, compressed_layer)}


@pytest.fixture(params=list(KINDS))
def packed(request: pytest.FixtureRequest, save_tiny: Callable[..., Path]) -> Path:
    folder = save_tiny("qwen2")  # its projections have biases
    said, layer = KINDS[request.param]
    pack_folder(folder, said(), lambda name, shape: layer(shape, seed=len(name)))
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_digest_and_values_are_those_of_the_loaded_model(packed: Path) -> None:
    base, backbone = folder_base(packed), load_backbone(packed)
    assert isinstance(base, PackedFolderBase)
    assert base.digest == backbone.digest
    weights = dict(backbone.model.named_parameters())
    assert list(base.names()) == sorted(weights)
    assert all(torch.equal(base.read(name), weights[name]) for name in weights)


@pytest.mark.parametrize("kind", ["pool", "full", "lora"])
def test_a_change_of_packed_layers_is_refused_with_the_ways_that_work(
    packed: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make(tmp_path / "a.ledger", packed, kind)
    before = everything(tmp_path)
    with pytest.raises(ModelError, match=r"layers whose codes are packed.*edgetune compress"):
        write_copy(folder_base(packed), [ledger], tmp_path / "out")
    assert execute(["apply", str(packed), str(ledger), "--out", str(tmp_path / "out")]) == 4
    assert "codes are packed" in capsys.readouterr().err
    assert execute(["apply", str(packed), str(ledger), "--in-place"]) == 2
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["bitfit", "mezo_bitfit"])
def test_a_change_of_other_weights_is_applied_and_leaves_the_codes(
    packed: Path, tmp_path: Path, kind: str
) -> None:
    ledger = make(tmp_path / "a.ledger", packed, kind, size=0.1)
    write_copy(folder_base(packed), [ledger], tmp_path / "out")
    expected = dict(edgetune.load(packed, ledger).named_parameters())
    found = dict(load_backbone(tmp_path / "out").model.named_parameters())
    plain = dict(load_backbone(packed).model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], plain[name]) for name in plain)
    old, new = (load_file(folder / "model.safetensors") for folder in (packed, tmp_path / "out"))
    codes = [name for name in old if name.endswith(("qweight", "weight_packed", "scales", "weight_scale"))]
    assert codes
    assert all(torch.equal(old[name], new[name]) for name in codes)


def test_an_adapter_of_a_packed_base_is_written(packed: Path, tmp_path: Path) -> None:
    ledger = make(tmp_path / "a.ledger", packed, "lora", size=0.05)
    base, read = folder_base(packed), read_ledger(ledger)
    write_peft_adapter(tmp_path / "adapter", parts_of(read, base, where=ledger), base, read)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 4


def test_the_same_weights_in_floats_are_another_base(packed: Path, tmp_path: Path) -> None:
    ledger = make(tmp_path / "a.ledger", packed, "bitfit")
    load_backbone(packed).model.save_pretrained(tmp_path / "floats")
    with pytest.raises(DigestError, match="belongs to base"):
        write_copy(folder_base(tmp_path / "floats"), [ledger], tmp_path / "out")


def test_layers_packed_in_another_way_are_refused(packed: Path) -> None:
    config = packed / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelError, match="already quantised, by 'awq'"):
        folder_base(packed)
