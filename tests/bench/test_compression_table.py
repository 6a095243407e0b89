"""The table of compressions: its cells, one of them against a plain loop, its lines beside rivals."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgetune.bench import compression as bench
from edgetune.bench.compressing import measure
from edgetune.bench.compression import Compression, cells_of, compression, line_of
from edgetune.cli.app import execute
from edgetune.cli.compression_table import table
from edgetune.compress.sequential import compress_model
from edgetune.core.errors import ConfigError, DataError
from edgetune.methods.catalogue import compression_method
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import EMBEDDED
from edgetune.report.rivals import Rival


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "t.txt"
    path.write_text(
        "\n<|endoftext|>\n".join(f"Gate {n} opens at dawn. Water comes." for n in range(90)), "utf-8"
    )
    return str(path)


def cells(text: str | None, *only: str) -> list[Compression]:
    return cells_of(EMBEDDED, only, 3, text=text, test=None, tokens=600)


def test_every_calibration_is_a_cell_and_a_method_without_one_has_a_single_cell(text: str) -> None:
    found = [(one.method, one.grid, one.seed) for one in cells(text, "optq", "rtn", "Q4_0")]
    assert found == [("optq", "Q4_0", 0), ("optq", "Q4_0", 1), ("optq", "Q4_0", 2), ("rtn", "Q4_0", 0)]
    assert {one.grid for one in cells(text, "optq")} >= {"Q4_0", "Q8_0"}
    assert {one.method for one in cells(text, "Q8_0")} >= {"optq", "rtn"}
    first = cells(text, "optq", "Q4_0")[0]
    before = first.name
    assert before != replace(first, tokens=700).name
    Path(text).write_text("other text", "utf-8")
    assert before != first.name  # rows of another text are not taken for its own


def test_other_names_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'optk'"):
        cells(None, "optk")
    with pytest.raises(ConfigError, match="no such file"):
        cells(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="no text to calibrate on"):
        measure(EMBEDDED, "rtn", "Q4_0", 0, text=None, test=None, tokens=1)


def test_a_cell_is_what_a_plain_loop_measures(tmp_path: Path) -> None:
    backbone = load_backbone(EMBEDDED)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(5, 900, (16, 24), generator=generator, dtype=torch.int32)
    folder = tmp_path / "model"
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    save_file(
        {"calib": drawn[:12].contiguous(), "test": drawn[12:].contiguous()}, folder / "tokens.safetensors"
    )
    found = measure(str(folder), "rtn", "Q4_0", 0, text=None, test=None, tokens=1)
    dense, rounded = backbone.model, copy.deepcopy(backbone.model)
    packed = compress_model(rounded, [], replace(compression_method("rtn"), embeddings=None))
    test = drawn[12:].long()
    with torch.no_grad():
        p, q = (model(test).logits.double().log_softmax(-1) for model in (dense, rounded))
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert found["top_1"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    nats = -q[:, :-1].gather(-1, test[:, 1:, None]).mean()
    assert found["perplexity"] == pytest.approx(float(nats.exp()), rel=1e-4)
    assert found["bytes"] == found["weights"] * 18 // 32 == sum(one.stored_bytes for one in packed.values())
    assert found["tokens"] == 12 * 24


def test_the_command_writes_a_table_and_goes_on_where_it_was(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = list[str]()

    def run(cell: Compression, out: Path) -> dict[str, Any]:
        ran.append(cell.name)
        return row(cell)

    monkeypatch.setattr(bench, "_run", run)
    rivals = tmp_path / "rivals.json"
    rivals.write_text(json.dumps([{"name": "Q4_K", "bytes": 17, "kl": 0.5}]), "utf-8")
    command = [
        "bench", "compression", "--calibration", text, "--only", "optq", "--only", "Q4_0", "--seeds", "2",
        "--rivals", str(rivals), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert execute(command) == 0
    assert execute([*command, "--seeds", "3"]) == 0
    assert [name.split("-")[-2] for name in ran] == ["0", "1", "2"]
    page = (tmp_path / "out" / "compression-embedded.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| Q4_K | | 5.00e-01 |")
    assert lines[2].startswith("| optq | Q4_0 | 2.00e+00 ± 1.00e+00 |")
    assert page in capsys.readouterr().out


def row(cell: Compression) -> dict[str, Any]:
    return {
        "cell": cell.name, "method": cell.method, "grid": cell.grid, "kl": 1.0 + cell.seed, "kl_rare": 3.0,
        "perplexity": 4.0, "top_1": 0.9, "cpu_seconds": 2.0, "memory": 10 + cell.seed, "bytes": 18, "weights": 32,
        "tokens": 5,
    }  # fmt: skip


def test_a_line_is_the_mean_of_its_rows_and_lines_stand_by_size(text: str, tmp_path: Path) -> None:
    mine = cells(text, "optq", "Q4_0")[:2]
    line = line_of([row(one) for one in mine])
    assert line["kl"] == pytest.approx((1.5, 0.5**0.5))
    assert (line["bits"], line["memory"], line["seeds"]) == (4.5, 11, 2)
    other = {**line, "method": "other", "kl": (0.1, 0.0), "bytes": 16}
    said = table([line, other], [Rival("mid", 17, 0.5)]).splitlines()[2:]
    assert [one.split("|")[1].strip() for one in said] == ["other", "mid", "optq"]


def test_a_cell_runs_in_a_process_of_its_own(text: str, tmp_path: Path) -> None:
    (line,) = compression(cells(text, "rtn", "Q8_0"), tmp_path, jobs=1, told=lambda _: None)
    assert line["kl"][0] < 1e-3
    assert line["bits"] == 8.5
    missing = [replace(one, text=str(tmp_path)) for one in cells(text, "rtn", "Q4_0")]
    with pytest.raises(DataError, match="a run failed"):
        compression(missing, tmp_path, jobs=1, told=lambda _: None)
