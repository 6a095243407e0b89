from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import edgetune
from edgetune.core.errors import DigestError, ModelError
from edgetune.core.gguf_read import read_gguf, read_tensors, stored_bytes
from edgetune.core.ledger import read_ledger
from edgetune.core.quantised import GRIDS
from edgetune.installed.base import OWN, Touched
from edgetune.installed.blocks import moved, rounded
from edgetune.installed.gguf import GgufBase
from edgetune.installed.making import write_copy
from edgetune.models.backbone import load_backbone

Exported = Callable[[str], Path]
Written = Callable[..., Path]


def values(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_backbone(path).model.named_parameters())


def applied(base: Path, ledger: Path, out: Path, touched: Touched = OWN) -> dict[str, torch.Tensor]:
    write_copy(GgufBase(base, touched), [ledger], out)
    return values(out)


def test_an_f32_file_holds_the_bits_of_the_tuned_model(
    exported: Exported, ledger: Written, tmp_path: Path
) -> None:
    path = ledger()
    found = applied(exported("F32"), path, tmp_path / "out.gguf")
    for name, expected in edgetune.load("embedded", path).named_parameters():
        assert torch.equal(found[name], expected)


def test_a_ledger_tuned_on_the_file_itself_is_proved_by_its_digest(
    exported: Exported, tmp_path: Path
) -> None:
    from ledgers import make

    base = exported("Q8_0")
    path = make(tmp_path / "a.ledger", base)
    said = write_copy(GgufBase(base, Touched(half=True)), [path], tmp_path / "out.gguf")
    assert "on the base itself" in said
    found = values(tmp_path / "out.gguf")
    for name, expected in edgetune.load(base, path).named_parameters():
        kept = expected if expected.dim() == 1 else expected.half().float()
        assert torch.equal(found[name], kept)


@pytest.mark.parametrize("kind", ["lora", "pool"])
@pytest.mark.parametrize("touched", [Touched(half=True), Touched(GRIDS["Q8_0"])])
def test_changed_matrices_are_as_near_as_their_type_allows(
    exported: Exported, ledger: Written, tmp_path: Path, kind: str, touched: Touched
) -> None:
    base, path = exported("Q4_0"), ledger(kind, size=0.02 if kind == "lora" else 2e-3)
    found, before = applied(base, path, tmp_path / "out.gguf", touched), values(base)
    rounded_base = {name: one.clone() for name, one in before.items()}
    tuned, plain = edgetune.load("embedded", path), load_backbone("embedded").model
    for (name, goal), start in zip(tuned.named_parameters(), plain.parameters(), strict=True):
        wanted = rounded_base[name] + (goal - start)
        # Half a step of Q8_0 is 1/254 of a block's largest weight, and its scale is half a unit of fp16 off.
        bound = 2**-11 if touched.half else 1 / 250
        assert (found[name] - wanted).abs().max() <= bound * wanted.abs().max() + 1e-6


def test_untouched_tensors_keep_their_bytes_and_only_provenance_differs(
    exported: Exported, ledger: Written, tmp_path: Path
) -> None:
    base, path, out = exported("Q4_0"), ledger("lora"), tmp_path / "out.gguf"
    applied(base, path, out)
    before, after = read_gguf(base), read_gguf(out)
    assert [one.name for one in before.tensors] == [one.name for one in after.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert (one.kind, one.shape) == (other.kind, other.shape)
        same = np.array_equal(stored_bytes(base, one), stored_bytes(out, other))
        assert same == (not one.name.startswith("blk") or "norm" in one.name)
    said = {key for key in after.metadata if after.metadata[key] != before.metadata.get(key)}
    assert said == {"edgetune.ledger_digest", "edgetune.method"}
    assert after.metadata["edgetune.ledger_digest"] == read_ledger(path).digest
    assert {key: before.array(key) for key in before.arrays} == {
        key: after.array(key) for key in after.arrays
    }


def test_the_library_of_llama_cpp_reads_the_written_file_alike(
    exported: Exported, ledger: Written, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    applied(exported("Q4_0"), ledger(), out, Touched(GRIDS["Q8_0"]))
    ours = dict(read_tensors(out))
    reader = gguf.GGUFReader(out)
    assert {one.name for one in reader.tensors} == set(ours)
    for one in reader.tensors:
        assert np.array_equal(gguf.quants.dequantize(one.data, one.tensor_type), ours[one.name])


def test_how_much_of_a_small_change_arrived_is_said(
    exported: Exported, ledger: Written, tmp_path: Path
) -> None:
    path = ledger("lora", size=2e-3)

    def kept(kind: str, touched: Touched) -> float:
        said = write_copy(GgufBase(exported(kind), touched), [path], tmp_path / "out.gguf")
        return float(said.rpartition("; ")[2].split(" %")[0]) / 100

    tuned, plain = edgetune.load("embedded", path), load_backbone("embedded").model
    base, stored = values(exported("Q4_0")), dict[str, torch.Tensor]()
    own = kept("Q4_0", OWN)
    stored = values(tmp_path / "out.gguf")
    dot = whole = 0.0
    for (name, goal), start in zip(tuned.named_parameters(), plain.parameters(), strict=True):
        change = (goal - start).double()
        dot += float((change * (stored[name] - base[name])).sum())
        whole += float(change.square().sum())
    assert own == pytest.approx(dot / whole, abs=2e-3)
    assert own < 0.6
    assert kept("Q4_0", Touched(GRIDS["Q8_0"])) > 0.9
    assert kept("F16", OWN) == 1


def test_a_file_that_holds_a_ledger_takes_no_other(
    exported: Exported, ledger: Written, tmp_path: Path
) -> None:
    path, out = ledger(), tmp_path / "out.gguf"
    applied(exported("Q8_0"), path, out)
    with pytest.raises(ModelError, match="holds the ledger"):
        write_copy(GgufBase(out), [path], tmp_path / "again.gguf")


def test_a_foreign_ledger_is_refused(
    exported: Exported, save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    from ledgers import make

    path = make(tmp_path / "a.ledger", save_tiny("llama"))
    with pytest.raises(DigestError, match="belongs to base"):
        write_copy(GgufBase(exported("Q8_0")), [path], tmp_path / "out.gguf")


def random_rows(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_blocks_of_what_they_hold_already_stay_as_they_are(name: str) -> None:
    grid = GRIDS[name]
    raw = rounded(grid, random_rows(4, 512, 0), "w") if not grid.has_unit else _random_blocks(grid)
    from edgetune.core.packing import unpack

    held = unpack(grid, raw).dequantise()
    assert np.array_equal(moved(grid, raw, held, "w"), raw)


def _random_blocks(grid: object) -> np.ndarray:
    from edgetune.compress.grid import AbsMax
    from edgetune.compress.rounding import round_to_nearest
    from edgetune.core.packing import pack

    return pack(round_to_nearest(random_rows(4, 512, 0), grid, AbsMax(), unit=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(GRIDS) - {"NVFP4"}))
def test_moved_blocks_are_no_farther_than_kept_or_fresh_ones(name: str) -> None:
    from edgetune.core.packing import unpack

    grid = GRIDS[name]
    weights = random_rows(4, 512, 1)
    raw = rounded(grid, weights, "w")
    goal = weights + 0.3 * random_rows(4, 512, 2)
    errors = [
        (unpack(grid, blocks).dequantise() - goal).square().view(-1, grid.block).sum(1)
        for blocks in (moved(grid, raw, goal, "w"), rounded(grid, goal, "w"), raw)
    ]
    assert (errors[0] <= torch.minimum(errors[1], errors[2]) * (1 + 1e-5)).all()
    assert errors[0].sum() < 0.6 * errors[2].sum()
