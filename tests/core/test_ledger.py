"""The ledger: a whole fine-tune in one small file, which is refused unless it is whole and fits its base."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgetune.core.errors import DigestError, EdgetuneError, ModelError, OutputError
from edgetune.core.ledger import DirectionsSpec, Ledger, read_ledger, write_ledger
from edgetune.core.update import Dense, Projected

BASE, KEY = "b" * 64, "0123456789abcdef"
POOL = Ledger(
    base_digest=BASE,
    method="fedkseed",
    update=Projected(np.array([5, 2]), np.array([0.5, -3e-7], np.float32)),
    directions=DirectionsSpec("hadamard", 8, KEY, 7),
    weights_digest="a" * 64,
    round=3,
    fingerprint="f" * 64,
    extra={"note": "grüße"},
)
FRESH = replace(
    POOL,
    update=Projected(np.array([2**63 - 1, 4, 9]), np.array([1, 2, 3], np.float32)),
    directions=DirectionsSpec("rademacher", 0, KEY, None),
)
ADAPTER = replace(
    POOL,
    method="lora",
    update=Dense(
        {"a.B": torch.arange(6.0).view(2, 3).T, "a.A": torch.ones(2).half(), "s": torch.tensor(2.0)}
    ),
    directions=None,
    adapter={"r": 8, "target_modules": ["k", "q"]},
)
ALL = pytest.mark.parametrize("ledger", [POOL, FRESH, ADAPTER], ids=["pool", "fresh", "adapter"])


def written(tmp_path: Path, ledger: Ledger) -> Path:
    path = tmp_path / "tuned.ledger"
    write_ledger(path, ledger)
    return path


@ALL
def test_a_ledger_comes_back_as_it_was_written(tmp_path: Path, ledger: Ledger) -> None:
    found = read_ledger(written(tmp_path, ledger), base_digest=BASE)
    assert replace(found, update=ledger.update) == ledger
    assert found.digest == ledger.digest
    if isinstance(ledger.update, Dense):
        assert {name: tensor.tolist() for name, tensor in found.update.tensors.items()} == {
            name: tensor.tolist() for name, tensor in ledger.update.tensors.items()
        }
    else:
        nonzero = found.update.coefficients != 0
        found_pairs = zip(found.update.keys[nonzero], found.update.coefficients[nonzero], strict=True)
        pairs = list(zip(ledger.update.keys, ledger.update.coefficients, strict=True))
        assert list(found_pairs) == (sorted(pairs) if ledger is POOL else pairs)


@ALL
def test_equal_ledgers_are_equal_files_with_a_sorted_header(tmp_path: Path, ledger: Ledger) -> None:
    first, *others = [
        written(tmp_path, ledger).read_bytes() for _ in range(16)
    ]  # the library hashes anew each time
    assert all(other == first for other in others)
    end = 8 + int.from_bytes(first[:8], "little")
    header = json.loads(first[8:end])
    assert next(iter(header)) == "__metadata__"
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert end % 8 == 0


def test_a_process_with_other_hashes_writes_the_same_file(tmp_path: Path) -> None:
    path = written(tmp_path, ADAPTER)
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from edgetune.core.ledger import read_ledger, write_ledger\n"
        "ledger = read_ledger(Path(sys.argv[1])); names = {name: name for name in set(ledger.update.tensors)}\n"
        "shuffled = type(ledger.update)({name: ledger.update.tensors[name] for name in names})\n"
        "adapter = {name: ledger.adapter[name] for name in set(ledger.adapter)}\n"
        "write_ledger(Path(sys.argv[2]), replace(ledger, update=shuffled, adapter=adapter))\n"
    )
    for hashes in ("0", "1", "2"):
        again = tmp_path / f"{hashes}.ledger"
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        subprocess.run([sys.executable, "-c", script, path, again], env=environment, check=True, timeout=120)
        assert again.read_bytes() == path.read_bytes()


@ALL
def test_a_file_with_its_header_in_any_order_is_read(tmp_path: Path, ledger: Ledger) -> None:
    """Versions before this one left the order of the header to a hash map."""
    path = written(tmp_path, ledger)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for order in (list(metadata), list(reversed(metadata))):
        save_file(tensors, path, metadata={name: metadata[name] for name in order})
        assert read_ledger(path, base_digest=BASE).digest == ledger.digest


def test_a_pool_of_4096_fits_in_18_kilobytes(tmp_path: Path) -> None:
    update = Projected(np.arange(4096), np.ones(4096, np.float32))
    spec = DirectionsSpec("hadamard", 4096, KEY, 7)
    path = written(tmp_path, replace(POOL, update=update, directions=spec))
    assert 4 * 4096 < path.stat().st_size < 18_000


@ALL
def test_any_changed_byte_is_noticed(tmp_path: Path, ledger: Ledger) -> None:
    path = written(tmp_path, ledger)
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(EdgetuneError):
            read_ledger(path, base_digest=BASE)


@ALL
def test_a_file_cut_short_is_refused(tmp_path: Path, ledger: Ledger) -> None:
    path = written(tmp_path, ledger)
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_ledger(path)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with pytest.raises(ModelError, match="no such ledger"):
        read_ledger(path)
    path.write_bytes(pickle.dumps({"coefficients": [1.0]}))
    with pytest.raises(ModelError, match="not a readable ledger"):
        read_ledger(path)
    save_file({"coefficients": torch.ones(8)}, path)
    with pytest.raises(ModelError, match="not an edgetune ledger"):
        read_ledger(path)
    save_file({"coefficients": torch.ones(8)}, path, metadata={"format": "edgetune-ledger-1"})
    with pytest.raises(ModelError, match="this version reads edgetune-ledger-2"):
        read_ledger(path)


def test_a_ledger_of_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DigestError, match="belongs to base bbbb"):
        read_ledger(written(tmp_path, POOL), base_digest="c" * 64)


def test_a_full_disk_keeps_the_old_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, POOL)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        write_ledger(path, FRESH)
    assert read_ledger(path).digest == POOL.digest
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_depends_on_values_directions_and_base() -> None:
    other = Projected(np.array([5, 2]), np.array([0.5, -4e-7], np.float32))
    spec = replace(POOL.directions, kind="rademacher")
    variants = [replace(POOL, update=other), replace(POOL, directions=spec), replace(POOL, base_digest="c")]
    assert len({ledger.digest for ledger in [POOL, *variants]}) == 4
    reordered = Projected(np.array([2, 5, 5]), np.array([-3e-7, 0.25, 0.25], np.float32))
    assert replace(POOL, update=reordered).digest == POOL.digest
