from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import edgetune
from edgetune.core.errors import DigestError, ModelError, OutputError
from edgetune.core.ledger import read_ledger
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.lora import Adapter
from edgetune.installed.adapter import write_gguf_adapter, write_peft_adapter
from edgetune.installed.base import Base
from edgetune.installed.folder import FolderBase
from edgetune.installed.gguf import GgufBase
from edgetune.installed.parts import parts_of
from edgetune.models.backbone import load_backbone
from edgetune.models.source import find_model
from ledgers import make

KINDS = ("lora", "frozen_a", "mezo_lora")


def written(base: Base, ledger: Path, out: Path) -> Path:
    read = read_ledger(ledger)
    write = write_gguf_adapter if out.suffix == ".gguf" else write_peft_adapter
    write(out, parts_of(read, base, where=ledger), base, read)
    return out


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_folder_and_computes_what_edgetune_does(
    save_tiny: Callable[..., Path], tmp_path: Path, family: str, kind: str
) -> None:
    import peft

    folder = save_tiny(family)
    ledger = make(tmp_path / "a.ledger", folder, kind, size=0.1)
    out = written(FolderBase(folder), ledger, tmp_path / "adapter")
    ids = torch.arange(20).view(1, -1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # peft corrects its own settings for GPT-2, and says so
        placed = peft.PeftModel.from_pretrained(load_backbone(folder).model, str(out)).eval()
        found = placed(input_ids=ids).logits
        expected = edgetune.load(folder, ledger)(input_ids=ids).logits
        plain = load_backbone(folder).model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "far"), [("F32", 2e-3), ("F16", 2e-2), ("Q4_0", 0.2)])
def test_llama_cpp_puts_the_adapter_on_a_base_of_any_type(
    exported: Callable[[str], Path], ledger: Callable[..., Path], tmp_path: Path, kind: str, far: float
) -> None:
    pytest.importorskip("xllamacpp")
    import peft

    path = ledger("lora", size=0.05)
    base = FolderBase(find_model("embedded"))
    adapter = written(base, path, tmp_path / "adapter.gguf")
    # The weights of the file itself, blocks dequantised, with the adapter as peft puts it on: the same model but for
    # llama.cpp's rounding of activations to 8 bits before it multiplies by blocks.
    backbone = load_backbone(exported(kind))
    ids = backbone.tokenizer("The station at the harbour measures the wind, and the wind turns.")["input_ids"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # peft asks transformers for what will be called otherwise
        plain = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        placed = peft.PeftModel.from_pretrained(backbone.model, str(written(base, path, tmp_path / "folder")))
        tuned = placed(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    with LlamaCpp(exported(kind), exact=True, context=128, adapters=[Adapter(adapter)]) as engine:
        found = engine.log_probabilities(ids, 1)
    distance = [
        max(abs(one - float(logits[t, ids[t + 1]])) for t, one in enumerate(found))
        for logits in (tuned, plain)
    ]
    assert distance[0] < far < distance[1] / 2


def test_a_file_of_the_base_names_the_layers_as_well_as_its_folder(
    exported: Callable[[str], Path], ledger: Callable[..., Path], tmp_path: Path
) -> None:
    path = ledger("mezo_lora", size=0.05)
    one = written(FolderBase(find_model("embedded")), path, tmp_path / "one.gguf")
    other = written(GgufBase(exported("Q4_0")), path, tmp_path / "other.gguf")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["pool", "full", "bitfit"])
def test_a_ledger_without_factors_says_what_to_use(
    save_tiny: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    folder = save_tiny("llama")
    ledger = make(tmp_path / "a.ledger", folder, kind)
    with pytest.raises(ModelError, match=r"no low-rank factors.*edgetune apply"):
        written(FolderBase(folder), ledger, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_foreign_base_and_a_used_folder_are_refused(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder, other = save_tiny("llama"), save_tiny("llama", seed=1)
    ledger = make(tmp_path / "a.ledger", folder, "lora")
    with pytest.raises(DigestError, match="belongs to base"):
        written(FolderBase(other), ledger, tmp_path / "adapter")
    with pytest.raises(OutputError, match="something here already"):
        written(FolderBase(folder), ledger, other)
