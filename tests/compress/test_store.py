"""A compression that is cut off goes on at its block, to the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch

from edgetune.compress.sequential import compress_model
from edgetune.compress.store import clear
from edgetune.core.errors import ModelError
from edgetune.core.events import Event
from edgetune.core.files import PARTIAL
from edgetune.core.quantised import Q5_0
from edgetune.methods.compression import gptaq

from .problems import tiny

METHOD = gptaq.METHOD


class CutError(Exception):
    """Stands for a kill."""


def after(matrices: int) -> object:
    """Return a listener that cuts the compression off after so many matrices."""
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if len(seen) > matrices:
            raise CutError

    return listen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("matrices", [0, 8, 9, 10, 14])
def test_a_killed_compression_goes_on_to_identical_codes(
    family: str, matrices: int, calibration: list[torch.Tensor], tmp_path: Path
) -> None:
    whole: list[Event] = []
    expected = compress_model(tiny(family), calibration, METHOD, whole.append)
    with contextlib.suppress(CutError):
        compress_model(tiny(family), calibration, METHOD, after(matrices), scratch=tmp_path)  # type: ignore[arg-type]
    told: list[Event] = []
    model = tiny(family)
    found = compress_model(model, calibration, METHOD, told.append, scratch=tmp_path)
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        assert torch.equal(found[name].codes, matrix.codes)
        assert all(map(torch.equal, found[name].numbers, matrix.numbers))
    assert told == whole
    for name, matrix in found.items():
        weight = model.get_parameter(name).detach()
        assert any(torch.equal(one, matrix.dequantise()) for one in (weight, weight.T))  # Conv1D: transposed


def test_solved_blocks_are_not_solved_again(calibration: list[torch.Tensor], tmp_path: Path) -> None:
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(times) == 2
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_another_job_takes_nothing_from_the_folder(calibration: list[torch.Tensor], tmp_path: Path) -> None:
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    other = dataclasses.replace(METHOD, grid=Q5_0)
    found = compress_model(tiny("llama"), calibration, other, scratch=tmp_path)
    assert {matrix.grid.name for matrix in found.values()} == {"Q5_0", "Q8_0"}
    fewer = compress_model(tiny("llama"), calibration[:2], other, scratch=tmp_path)
    alone = compress_model(tiny("llama"), calibration[:2], other)
    assert all(torch.equal(fewer[name].codes, alone[name].codes) for name in alone)
    another = compress_model(tiny("llama", seed=1), calibration[:2], other, scratch=tmp_path)
    assert not torch.equal(
        another["model.layers.0.mlp.up_proj.weight"].codes, alone["model.layers.0.mlp.up_proj.weight"].codes
    )


def test_another_version_takes_nothing_from_the_folder(
    calibration: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("edgetune.compress.sequential.version", lambda: "0.0.0")
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    assert all(path.stat().st_mtime_ns > then for path, then in times.items())


def test_a_damaged_block_is_refused_by_name(calibration: list[torch.Tensor], tmp_path: Path) -> None:
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    path = tmp_path / "block-1.solved"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"block-1\.solved.*damaged"):
        compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    path.write_bytes(data[:20])
    with pytest.raises(ModelError, match="damaged"):
        compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)


def test_the_store_is_cleared_of_all_jobs(calibration: list[torch.Tensor], tmp_path: Path) -> None:
    compress_model(tiny("llama"), calibration, METHOD, scratch=tmp_path)
    (tmp_path / f"{PARTIAL}block-3.solved-x").write_bytes(b"cut off")  # by a kill in the middle of a write
    clear(tmp_path)
    assert not list(tmp_path.iterdir())
