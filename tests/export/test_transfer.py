"""What a file takes on the wire, against compressing it in one piece."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from edgetune.core.packing import pack
from edgetune.core.quantised import Q4_0, QuantisedMatrix
from edgetune.export import transfer
from edgetune.export.transfer import transfer_of


def nibbles(share: float) -> bytes:
    """Blocks of Q4_0 in which a share of the codes is 0."""
    luck = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (256, 512), generator=luck, dtype=torch.int8)
    codes[torch.rand(256, 512, generator=luck) < share] = 0
    scales = torch.rand(256, 16, generator=luck).half()
    return pack(QuantisedMatrix(Q4_0, codes, (scales,))).tobytes()


def test_the_stream_of_parts_is_that_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, file = nibbles(0.5), tmp_path / "file"
    file.write_bytes(data)
    monkeypatch.setattr(transfer, "zstd", None)
    monkeypatch.setattr(transfer, "PART", 1000)
    assert transfer_of(file) == transfer.Transfer(len(zlib.compress(data, 1)), "deflate")


def test_what_is_pruned_is_stored_alike_and_sent_in_less(tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    dense.write_bytes(nibbles(0.0))
    pruned.write_bytes(nibbles(0.5))
    assert dense.stat().st_size == pruned.stat().st_size
    assert transfer_of(pruned).size_bytes < 0.85 * transfer_of(dense).size_bytes


def test_with_zstd_installed_it_is_zstd(tmp_path: Path) -> None:
    if transfer.zstd is None:
        pytest.skip("no zstd here: Python 3.14, or the package backports.zstd")
    data, file = nibbles(0.5), tmp_path / "file"
    file.write_bytes(data)
    sent = transfer_of(file)
    assert sent.coding == "zstd"
    assert abs(sent.size_bytes - len(transfer.zstd.compress(data, 3))) < 64


def test_nothing_takes_next_to_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert transfer_of(file).size_bytes < 32
