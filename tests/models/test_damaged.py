from __future__ import annotations

import json
import math
import os
import struct
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


def header(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    """Rewrite the header of the weight file; the weights stay."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        content = json.loads(data[8 : 8 + length])
        change(content)
        text = json.dumps(content).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def entry(**change: object) -> Callable[[Path], None]:
    return header(lambda content: content[NORM].update(change))  # type: ignore[attr-defined]


def raw_header(text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def index_of(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


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
            f"'{NORM}' is stored as",
        ),
        (
            rewrite(lambda tensors: tensors.update({NORM: torch.ones(16).to(torch.float8_e4m3fn)})),
            f"'{NORM}' is stored as F8_E4M3",
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
        (configure(num_hidden_layers=10**9), "num_hidden_layers is 1e[+]09, more than the weight files"),
        (configure(num_hidden_layers=5000), "num_hidden_layers is 5000, more than"),
        (configure(num_hidden_layers=-1), "does not have"),
        (configure(num_hidden_layers="two"), "cannot use this configuration"),
        (configure(num_attention_heads=10**9), "num_attention_heads is"),
        (configure(text_config={"decoder_layers": 10**12}), "decoder_layers is"),
        (configure(vocab_size=10**12), "another shape"),
        (configure(head_dim=10**10), "another shape"),
        (write("config.json", "[" * 100_000), "nested too deeply|cannot use this configuration"),
        (write("config.json", '{"a":' * 100_000), "cannot use this configuration"),
        (write("config.json", f'{{"vocab_size": {"9" * 5000}}}'), "cannot use this configuration"),
        (write("config.json", " " * (17 << 20)), "bytes are too many"),
        (write("config.json", "[]"), "cannot use this configuration"),
        (write("generation_config.json", "[" * 100_000), "generation_config.json"),
        (entry(dtype=[]), "header entry of 'model.norm.weight' is damaged"),
        (entry(dtype={"a": 1}), "header entry"),
        (entry(dtype="F99"), "is stored as F99"),
        (entry(shape="16"), "header entry"),
        (entry(shape=[-16]), "header entry"),
        (entry(shape=[17]), "header entry"),
        (entry(shape=[1 << 62]), "header entry"),
        (entry(data_offsets=[0, True]), "header entry"),
        (entry(data_offsets=[0.0, 64.0]), "header entry"),
        (entry(data_offsets=[64, 0]), "header entry"),
        (entry(data_offsets=[0]), "header entry"),
        (header(lambda content: content.update(extra=[])), "header entry of 'extra'"),
        (header(lambda content: content.update({"\ud800" * 9000: 3})), "header entry"),
        (raw_header(b"[" * 100_000), "header of the weight file is damaged"),
        (raw_header(b'{"a":' * 100_000), "header of the weight file is damaged"),
        (raw_header(b'{"a":' + b"9" * 5000 + b"}"), "header of the weight file is damaged"),
        (raw_header(b"\xff\xfe{}"), "header of the weight file is damaged"),
        (raw_header(b"7"), "header of the weight file is damaged"),
        (index_of("[" * 100_000), "index of the weight files is damaged"),
        (index_of('{"weight_map": []}'), "index of the weight files is damaged"),
        (index_of('{"weight_map": {"a": ["x"]}}'), "index of the weight files is damaged"),
        (index_of('{"weight_map": {"a": "../x.safetensors"}}'), "is missing"),
        (index_of('{"weight_map": {"a": "x\\u0000y"}}'), "is missing"),
        (index_of(json.dumps({"weight_map": {"a": "x" * 9000}})), "is missing"),
        (configure(quantization_config={"quant_method": "awq", "bits": 4}), "already quantised"),
        (
            configure(quantization_config={"quant_method": "gptq", "bits": 4}),
            "layers are packed, and none is",
        ),
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
    with pytest.raises(ModelError, match=f"weight file '{shard.name}' is missing"):
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


def test_paths_that_no_file_system_takes_are_typed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for wrong in (
        tmp_path / "loop",
        tmp_path / ("x" * 5000),
        "a" * 5000,
        "a\0b",
        tmp_path / "pipe",
        "~nobody-here/x",
    ):
        with pytest.raises(ModelError):
            load_backbone(wrong)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(save, name: str) -> None:
    folder = save()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError):
        load_backbone(folder)
