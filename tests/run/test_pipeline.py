"""The main job end to end on the embedded model, in a shortened form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events
from edgetune.core.gguf_read import read_metadata
from edgetune.core.ledger import read_ledger

SHORT = [
    "--rounds", "2", "--quiet", "--set", "data.held_out=16", "--set", "data.calibration=8",
    "--set", "method.local_steps=10", "--set", "evaluation.max_new_tokens=24",
]  # fmt: skip
STAGES = ["base", "tuned", "rounded", "compressed", "llama.cpp"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete short run."""
    out = tmp_path_factory.mktemp("run")
    assert execute(["run", "--out", str(out), *SHORT]) == 0
    return out


def test_a_run_leaves_its_five_files(finished: Path) -> None:
    assert {"events.jsonl", "tuned.ledger", "model.gguf", "report.html", "summary.json"} <= {
        path.name for path in finished.iterdir()
    }


def test_the_summary_has_its_stable_keys(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert {"stages", "traffic", "method", "base_digest", "seed", "versions"} <= set(summary)
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    for stage in summary["stages"]:
        assert {"loss", "perplexity", "rouge_l", "size_bytes", "peak_memory_bytes", "seconds"} <= set(stage)
    assert summary["traffic"]["rounds"] == 2
    assert summary["traffic"]["devices_per_round"] == 2


def test_llama_cpp_agrees_with_the_compressed_model(finished: Path) -> None:
    stages = {stage["name"]: stage for stage in json.loads((finished / "summary.json").read_text())["stages"]}
    assert stages["llama.cpp"]["loss"] == pytest.approx(stages["compressed"]["loss"], abs=0.01)
    assert stages["llama.cpp"]["size_bytes"] == (finished / "model.gguf").stat().st_size


def test_traffic_is_the_length_of_the_payloads(finished: Path) -> None:
    rounds = [event for event in read_events(finished / "events.jsonl") if event["event"] == "round"]
    traffic = json.loads((finished / "summary.json").read_text())["traffic"]
    up = [size for event in rounds for size in event["payload_up_bytes"]]
    down = [size for event in rounds for size in event["payload_down_bytes"]]
    assert traffic["payload_up_bytes"] == max(up)
    assert traffic["total_bytes"] == sum(up) + sum(down)
    full = traffic["alternatives"]["FedAvg, full weights (fp16)"]["payload_up_bytes"]
    weights = next(read_events(finished / "events.jsonl"))["weights"]
    assert 2 * weights < full < 2 * weights + 10_000


def test_the_file_names_its_base_and_ledger(finished: Path) -> None:
    ledger, metadata = read_ledger(finished / "tuned.ledger"), read_metadata(finished / "model.gguf")
    assert metadata["edgetune.base_digest"] == ledger.base_digest
    assert metadata["edgetune.ledger_digest"] == ledger.digest


def test_a_killed_run_ends_with_the_same_ledger(finished: Path, tmp_path: Path) -> None:
    assert execute(["run", "--out", str(tmp_path), *SHORT, "--rounds", "1"]) == 0
    assert execute(["run", "--out", str(tmp_path), *SHORT]) == 0
    resumed = [
        event["round"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "run_resumed"
    ]
    assert resumed == [1]
    assert read_ledger(tmp_path / "tuned.ledger").digest == read_ledger(finished / "tuned.ledger").digest
    assert (tmp_path / "model.gguf").read_bytes() == (finished / "model.gguf").read_bytes()
