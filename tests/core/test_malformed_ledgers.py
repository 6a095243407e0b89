"""Ledgers with right digests and contents that make no sense are refused before anything is computed from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from edgetune.core.errors import ModelError
from edgetune.core.ledger import read_ledger

BASE, KEY = "b" * 64, "0123456789abcdef"
POOL = {"kind": "hadamard", "size": 4, "key_id": KEY, "seed": 7}
FRESH = {"kind": "rademacher", "size": 0, "key_id": KEY, "seed": 7}
COEFFICIENTS = torch.tensor([0.0, 0.5, -1.0, 0.0])
KEYS = torch.tensor([9, 4, 7, 1])


def crafted(path: Path, tensors: dict[str, torch.Tensor], directions: object, **changes: str) -> Path:
    """Write a ledger with the digests that docs/formats.md asks for, whatever it says."""
    header = {
        "format": "edgetune-ledger-2", "base_digest": BASE, "method": "fedkseed", "directions": json.dumps(directions),
        "adapter": "null", "weights_digest": "", "round": "3", "fingerprint": "f", "extra": "{}",
    } | changes  # fmt: skip
    content = hashlib.sha256(json.dumps([directions or {}, header["base_digest"]], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        content.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    header["content_digest"] = content.hexdigest()
    header["header_digest"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    path.write_bytes(save(tensors, metadata=header))
    return path


def pool(**changes: Any) -> dict[str, Any]:
    return POOL | changes


def test_what_is_crafted_well_is_read(tmp_path: Path) -> None:
    found = read_ledger(crafted(tmp_path / "a", {"coefficients": COEFFICIENTS}, POOL))
    assert found.update.coefficients.tolist() == COEFFICIENTS.tolist()  # type: ignore[union-attr]
    found = read_ledger(crafted(tmp_path / "b", {"keys": KEYS, "coefficients": COEFFICIENTS}, FRESH))
    assert found.update.keys.tolist() == KEYS.tolist()  # type: ignore[union-attr]
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["q"]}
    found = read_ledger(crafted(tmp_path / "c", {"a": torch.ones(2)}, None, adapter=json.dumps(lora)))
    assert found.adapter == lora


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        (torch.tensor([0, 0, float("nan"), 0]), "NaN"),
        (torch.tensor([0, 0, float("-inf"), 0]), "infinite"),
        (torch.tensor([0, 0, 2e18, 0]), "beyond any use"),
        (COEFFICIENTS.double(), "float32 vector"),
        (COEFFICIENTS.view(2, 2), "float32 vector"),
        (COEFFICIENTS.to(torch.float8_e4m3fn), "float32 vector"),
        (COEFFICIENTS.to(torch.complex64), "float32 vector"),
        (COEFFICIENTS[:3], "3 coefficients for a pool of 4"),
        (torch.ones(0), "0 coefficients for a pool of 4"),
    ],
)
def test_coefficients_of_a_pool(tmp_path: Path, coefficients: torch.Tensor, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_ledger(crafted(tmp_path / "x", {"coefficients": coefficients}, POOL))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (torch.tensor([9, -1, 7, 1]), "negative"),
        (KEYS[:3], "int64 vector"),
        (KEYS.int(), "int64 vector"),
        (KEYS.float(), "int64 vector"),
        (KEYS.view(2, 2), "int64 vector"),
    ],
)
def test_keys_of_fresh_directions(tmp_path: Path, keys: torch.Tensor, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_ledger(crafted(tmp_path / "x", {"keys": keys, "coefficients": COEFFICIENTS}, FRESH))


@pytest.mark.parametrize(
    "directions",
    [
        [],
        "hadamard",
        3,
        {},
        pool(kind=["hadamard"]),
        pool(kind="h" * 100),
        pool(size=-4),
        pool(size=1 << 40),
        pool(size=4.0),
        pool(size=True),
        pool(seed=-1),
        pool(seed=1 << 32),
        pool(seed="7"),
        pool(key_id="0123"),
        pool(key_id="g" * 16),
        pool(key_id=None),
        pool(more=1),
    ],
)
def test_directions_that_are_none(tmp_path: Path, directions: object) -> None:
    with pytest.raises(ModelError, match="malformed"):
        read_ledger(crafted(tmp_path / "x", {"coefficients": COEFFICIENTS}, directions))


@pytest.mark.parametrize(
    "names", [("coefficients", "keys"), ("keys",), ("coefficient",), ("coefficients", "x")]
)
def test_tensors_that_do_not_belong_there(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="malformed: a ledger of these directions holds coefficients"):
        read_ledger(crafted(tmp_path / "x", {name: COEFFICIENTS.clone() for name in names}, POOL))


@pytest.mark.parametrize(
    "change",
    [
        {"round": "-1"},
        {"round": "4294967296"},
        {"round": "9" * 5000},
        {"round": "3.0"},
        {"round": " 3"},
        {"round": "٣"},
        {"base_digest": "b"},
        {"base_digest": "B" * 64},
        {"weights_digest": "w" * 64},
        {"method": "../x"},
        {"fingerprint": "f" * 1000},
        {"extra": "[]"},
        {"extra": '{"layer_scale": 3}'},
        {"extra": "[" * 100_000},
        {"extra": "NaN"},
        {"adapter": "[]"},
        {"adapter": "{"},
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, change: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="malformed"):
        read_ledger(crafted(tmp_path / "x", {"coefficients": COEFFICIENTS}, POOL, **change))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("r", value) for value in (0, -8, 1 << 40, "8", 8.0, True)),
        *(("lora_alpha", value) for value in ("16", -1, float("nan"))),
        *(("num_virtual_tokens", value) for value in (0, [5])),
        *(("seed", value) for value in (-1, 1 << 32)),
        ("initial_scale", float("inf")),
    ],
)
def test_adapters_of_absurd_size(tmp_path: Path, setting: str, value: object) -> None:
    path = crafted(tmp_path / "x", {"a": torch.ones(2)}, None, adapter=json.dumps({setting: value}))
    with pytest.raises(ModelError, match=f"the adapter's {setting}"):
        read_ledger(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]).bfloat16(),
        torch.tensor([1.0, 1e30]),
        torch.ones(2).double(),
        torch.ones(2).to(torch.float8_e5m2),
        torch.ones(2).to(torch.complex64),
        torch.ones(2).long(),
        torch.ones(2).bool(),
    ],
)
def test_adapter_tensors_of_other_kinds(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="malformed: a"):
        read_ledger(crafted(tmp_path / "x", {"a": tensor}, None, adapter="{}"))


def test_a_ledger_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tensor"):
        read_ledger(crafted(tmp_path / "x", {}, None))
