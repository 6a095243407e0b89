"""The same command twice, in two processes that hash differently, leaves the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = [
    "--set", "federation.devices=3", "--set", "federation.participation=0.7", "--set", "federation.rounds=2",
    "--set", "federation.workers=1", "--set", "data.held_out=4", "--set", "data.calibration=4",
    "--set", "data.max_tokens=64", "--set", "split.kind=iid", "--set", "method.local_steps=2",
    "--set", "evaluation.max_new_tokens=4", "--quiet",
]  # fmt: skip


@pytest.mark.parametrize("method", ["fedkseed", "mezo", "lora"])
def test_two_processes_write_the_same_ledger(
    method: str, save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [
        {"instruction": f"say {i}", "context": "", "response": "yes", "category": "ab"[i % 2]}
        for i in range(40)
    ]
    data = tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "edgetune",
        "federate",
        method,
        "--model",
        str(save_tiny()),
        "--data",
        str(data),
    ]
    started = [
        subprocess.Popen(
            [*command, *SMALL, "--out", tmp_path / hashes], env={**os.environ, "PYTHONHASHSEED": hashes}
        )
        for hashes in ("1", "2")
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    for name in ("tuned.ledger", "manifest.json"):
        one, other = ((tmp_path / hashes / name).read_bytes() for hashes in ("1", "2"))
        assert one == other, name
