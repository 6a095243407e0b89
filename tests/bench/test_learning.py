"""The learning benchmark: its table is what its runs say, finished runs are kept, missing files are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def learning(tmp_path: Path) -> Command:
    """Run the command in a folder of its own, with what an installed package needs and no shared data."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        environment["EDGETUNE_DATA"] = str(tmp_path / "nothing")
        command = [sys.executable, str(ROOT / "benchmarks" / "learning.py"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )

    return run


TINY = [
    *("--task", "embedded", "--seeds", "2", "--kind", "rademacher", "--kind", "hadamard"),
    *("--pool", "16", "--pool", "32", "--steps", "4", "--held-out", "4"),
    *("--rate", "1e-4", "--rate", "2e-4", "--sweeps", "1"),
]


def test_the_table_is_what_the_runs_say_and_finished_runs_are_kept(learning: Command, tmp_path: Path) -> None:
    first = learning(*TINY)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "docs/results/learning.md").read_text()
    summary = json.loads((tmp_path / "docs/results/learning.json").read_text())
    kept = tmp_path / "out/learning/runs.jsonl"
    lines = [line for line in kept.read_text().splitlines() if line]
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 + 2 * 5  # the sweep, then seeds by cells

    rate = summary["tasks"]["embedded"]["rate"]
    sweep = {row["rate"]: row["losses"][-1] for row in rows[:2]}
    assert rate == min(sweep, key=lambda one: sweep[one])
    losses: dict[tuple[str, int], list[float]] = {}
    for row in rows[2:]:
        assert row["rate"] == rate
        losses.setdefault((row["kind"], row["pool"]), []).append(row["losses"][-1])

    def written(values: list[float], sign: str = "") -> str:
        return f"{np.mean(values):{sign}.4f} ± {np.std(values, ddof=1) / np.sqrt(2):.4f}"

    for (kind, pool), values in losses.items():
        (cell,) = [one for one in summary["cells"] if (one["kind"], one["pool"]) == (kind, pool)]
        assert cell["losses"] == values
        assert cell["mean"] == pytest.approx(np.mean(values))
        assert written(values) in page
    pairs = {
        pool: [a - b for a, b in zip(losses["hadamard", pool], losses["rademacher", pool], strict=True)]
        for pool in (16, 32)
    }
    for pool, values in [*pairs.items(), ("mean over K", list(np.mean(list(pairs.values()), axis=0)))]:
        assert f"| {pool} | {written(values, '+')}" in page
    assert (tmp_path / "docs/images/learning.png").read_bytes().startswith(b"\x89PNG")

    kept.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])  # killed while writing the last line
    second = learning(*TINY)
    assert second.returncode == 0, second.stderr
    ran = [line for line in second.stdout.splitlines() if line.startswith("embedded ")]
    assert len(ran) == 1
    assert (tmp_path / "docs/results/learning.md").read_text() == page
    assert kept.read_text().splitlines()[: len(lines) - 1] == lines[:-1]


@pytest.mark.parametrize("option", ["--data", "--model"])
def test_a_missing_path_is_one_line(learning: Command, tmp_path: Path, option: str) -> None:
    there = tmp_path / "dolly.jsonl"
    there.touch()
    paths = {"--data": str(there), "--model": str(tmp_path), option: str(tmp_path / "absent")}
    done = learning(*(word for pair in paths.items() for word in pair))
    assert done.returncode in (3, 4)
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "absent") in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_compares_its_columns_fresh_and_pooled(learning: Command, tmp_path: Path) -> None:
    done = learning(
        *("--study", "rank-one", "--task", "embedded", "--seeds", "2", "--pool", "16", "--steps", "4"),
        *("--held-out", "4", "--rate", "1e-4"),
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "docs/results/rank-one.md").read_text()
    lines = (tmp_path / "out/rank-one/runs.jsonl").read_text().splitlines()
    losses: dict[tuple[int, str], list[float]] = {}
    for row in (json.loads(line) for line in lines if line):
        losses.setdefault((row["pool"], row["kind"]), []).append(row["losses"][-1])
    compared = {0: ("rank_one", "rademacher"), 16: ("rank_one_pool", "hadamard")}
    assert set(losses) == {(pool, kind) for pool, kinds in compared.items() for kind in kinds}
    for pool, (kind, other) in compared.items():
        paired = np.subtract(losses[pool, kind], losses[pool, other])
        written = f"{np.mean(paired):+.4f} ± {np.std(paired, ddof=1) / np.sqrt(2):.4f}"
        assert f"| {pool or 'fresh'} | {written}" in page
    assert (tmp_path / "docs/images/rank-one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--study", "nothing"], ["--kind", "nothing"]])
def test_what_no_study_has_is_one_line(learning: Command, tmp_path: Path, arguments: list[str]) -> None:
    done = learning(*arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "'nothing'" in done.stderr
    assert not (tmp_path / "out").exists()
