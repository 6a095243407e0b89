from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetune.core.errors import ModelError
from edgetune.models.backbone import load_backbone


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def lengthen(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 8)


def spoil_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = b"#" * 32
    file.write_bytes(data)


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def configure(**change: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    return spoil


def remove(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


NORM, QUERY = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"model.safetensors: the weight file is cut short"),
        (cut_in_header, r"model.safetensors: the weight file is cut short"),
        (empty, r"model.safetensors: the weight file is cut short"),
        (lengthen, "longer than its header says"),
        (spoil_header, "header of the weight file is damaged"),
        (rewrite(lambda tensors: tensors.pop(NORM)), f"lack tensors.*{NORM}"),
        (rewrite(lambda tensors: tensors.update(extra=torch.ones(2))), "does not have: extra"),
        (rewrite(lambda tensors: tensors.update({NORM: torch.ones(5)})), "llama"),
        (rewrite(lambda tensors: tensors[QUERY].fill_(math.nan)), f"{QUERY} holds NaN"),
        (rewrite(lambda tensors: tensors[QUERY][0].fill_(math.inf)), f"{QUERY} holds NaN or inf"),
        (
            rewrite(lambda tensors: tensors.update({NORM: torch.ones(16, dtype=torch.int8)})),
            f"{NORM} is stored as",
        ),
        (
            rewrite(lambda tensors: tensors.update({NORM: torch.ones(16).to(torch.float8_e4m3fn)})),
            f"{NORM} is stored as F8_E4M3",
        ),
        (pickle_only, r"pytorch_model.bin: pickled weights.*save_pretrained"),
        (remove("model.safetensors"), "no model.safetensors"),
        (remove("config.json"), "no config.json"),
        (remove("tokenizer.json"), "no tokenizer in this folder"),
        (write("tokenizer.json", "{"), "cannot use this tokenizer"),
        (write("config.json", "{"), "config.json: cannot use this configuration"),
        (configure(model_type="unheard_of"), "cannot use this configuration"),
        (configure(model_type="t5"), "llama"),
        (configure(auto_map={"AutoConfig": "x.Y"}, model_type="unheard_of"), "cannot use this configuration"),
        (configure(num_hidden_layers=3), "lack tensors.*layers.2"),
        (configure(num_hidden_layers=1), r"does not have.*layers.1.*and \d+ more"),
        (configure(hidden_size=32), "llama"),
        (configure(quantization_config={"quant_method": "gptq", "bits": 4}), "already quantised"),
    ],
)
def test_names_what_is_wrong_with_a_folder(
    save, spoil: Callable[[Path], object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save()
    spoil(folder)
    capfd.readouterr()
    with pytest.raises(ModelError, match=message) as caught:
        load_backbone(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_names_what_is_wrong_with_shards(save) -> None:
    folder = save(max_shard_size="10KB")
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ModelError, match=f"{shard.name}: the weight file is cut short"):
        load_backbone(folder)
    shard.unlink()
    with pytest.raises(ModelError, match=f"weight file {shard.name} is missing"):
        load_backbone(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="index of the weight files is damaged"):
        load_backbone(folder)


def test_weights_too_large_for_a_narrow_type_are_refused(save) -> None:
    folder = save()
    rewrite(lambda tensors: tensors[QUERY].fill_(1e6))(folder)
    load_backbone(folder)
    with pytest.raises(ModelError, match=r"do not fit torch.float16"):
        load_backbone(folder, dtype=torch.float16)
