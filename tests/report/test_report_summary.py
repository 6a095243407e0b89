from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.core.errors import DataError, OutputError
from edgetune.core.events import (
    Event,
    Failed,
    RunFinished,
    RunResumed,
    Sample,
)
from edgetune.report.summary import read_summary, summarise, to_json, write_summary

from .logs import Write, full_run, layers, round_, stage, started, traffic


def test_keys_are_exactly_those_documented(write: Write) -> None:
    content = json.loads(write_summary(write(full_run())).read_text(encoding="utf-8"))
    assert list(content) == [
        "stages", "traffic", "method", "base_digest", "seed", "versions", "weights", "command", "config",
        "status", "failure", "seconds", "resumed", "rounds", "base_style_loss", "layers", "verified", "records",
        "precision", "data", "planned", "privacy", "hosts", "calibration", "allotted",
        "pruned",
    ]  # fmt: skip
    for row in content["stages"]:
        assert list(row) == [
            "name", "loss", "perplexity", "rouge_l", "metric", "score", "size_bytes", "peak_memory_bytes",
            "seconds", "kl_response", "kl", "kl_rare", "top_1",
        ]  # fmt: skip
    assert list(content["traffic"]) == [
        "rounds", "devices_per_round", "payload_up_bytes", "payload_down_bytes", "total_bytes", "alternatives",
    ]  # fmt: skip
    assert list(content["rounds"][0]) == [
        "round", "train_loss", "loss", "rouge_l", "payload_up_bytes", "payload_down_bytes", "dropped", "seconds",
        "peak_memory_bytes", "digest", "realised", "aggregation_residual", "layers", "staleness",
    ]  # fmt: skip


def test_values_of_a_complete_run(write: Write) -> None:
    content = to_json(read_summary(write(full_run())))
    assert content["status"] == "finished"
    assert content["failure"] is None
    assert [row["name"] for row in content["stages"]] == [
        "base",
        "tuned",
        "rounded",
        "compressed",
        "llama.cpp",
    ]
    assert (content["method"], content["seed"], content["records"]) == ("fedkseed", 0, 100)
    assert content["traffic"]["alternatives"]["FedAvg, LoRA r=8 (fp16)"] == {
        "payload_up_bytes": 131_600,
        "payload_down_bytes": 131_600,
    }
    assert content["layers"]["count"] == 28
    assert content["layers"]["median_error"] < content["layers"]["median_rounding_error"]
    assert content["base_style_loss"] == {"base": 1.71, "tuned": 1.93, "rounded": 2.05, "compressed": 1.95}
    assert [row["kl"] for row in content["stages"]] == [None, None, 8e-4, 4.4e-4, None]
    assert content["stages"][3]["kl_response"] == 2.2e-4
    assert content["seconds"] == 7 * (len(full_run()) - 1)


@pytest.mark.parametrize("run", [[], full_run()[:1], full_run()[:5], full_run()], ids=len)
def test_every_key_is_always_there(write: Write, tmp_path: Path, run: list[Event]) -> None:
    (tmp_path / "events.jsonl").touch()
    assert to_json(read_summary(write(run))).keys() == to_json(summarise([])).keys()


def test_a_round_done_again_after_a_resume_counts_once_as_done_last(write: Write) -> None:
    before = [started(), *(round_(number, digest="first") for number in (1, 2, 3, 4))]
    after = [
        started(),
        RunResumed(round=2),
        *(round_(number, loss=1.0, digest="second") for number in (3, 4, 5)),
    ]
    summary = read_summary(write([*before, *after]))
    assert [done.round for done in summary.rounds] == [1, 2, 3, 4, 5]
    assert [done.digest for done in summary.rounds] == ["first", "first", "second", "second", "second"]
    assert (summary.resumed, summary.status) == (1, "unfinished")


def test_rounds_after_the_checkpoint_are_lost_with_the_process(write: Write) -> None:
    summary = read_summary(write([started(), *map(round_, (1, 2, 3)), RunResumed(round=2)]))
    assert [done.round for done in summary.rounds] == [1, 2]


def test_pauses_between_attempts_are_not_run_time(write: Write, tmp_path: Path) -> None:
    write([started(), round_(1)])
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    late = lines[-1]["time"] + 86_400
    again = [{**lines[0], "time": late}, {"event": "run_resumed", "round": 1, "time": late + 5}]
    refused = {"event": "failed", "what": "x", "exit_code": 2, "time": late + 86_400}
    ended = {"event": "run_finished", "seconds": 6.0, "time": late + 6}
    assert summarise([*lines, *again, ended, refused]).seconds == 7 + 6


def test_the_newest_of_several_fresh_runs_counts(write: Write) -> None:
    summary = read_summary(write([*full_run(), started(seed=7), round_(1)]))
    assert summary.start == started(seed=7)
    assert (len(summary.rounds), summary.stages, summary.status) == (1, (), "unfinished")


def test_an_attempt_killed_at_once_hides_nothing(write: Write) -> None:
    summary = read_summary(
        write([started(), round_(1), started(), started(), RunResumed(round=1), round_(2)])
    )
    assert [done.round for done in summary.rounds] == [1, 2]


def test_a_fresh_start_in_the_same_folder_hides_what_was_there(write: Write) -> None:
    again = [started(), stage("base", 2.0, 50.0, 10, 10, None), round_(1)]
    summary = read_summary(write([*full_run(), *again]))
    assert (len(summary.rounds), len(summary.stages), summary.layers) == (1, 1, ())


def test_a_failure_is_told_until_the_run_is_resumed(write: Write) -> None:
    failed = [started(), round_(1), Failed("the disk is full", 6)]
    assert read_summary(write(failed)).failure == Failed("the disk is full", 6)
    summary = read_summary(write([RunResumed(round=1), round_(2), RunFinished(seconds=3.0)]))
    assert (summary.status, summary.failure) == ("finished", None)


def test_a_line_cut_short_by_a_kill_is_left_out(write: Write) -> None:
    folder = write([started(), round_(1)])
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "round", "round": 2, "dev')
    summary = read_summary(folder)
    assert (len(summary.rounds), summary.status) == (1, "unfinished")


def test_traffic_of_an_unfinished_run_is_counted_from_its_rounds(write: Write) -> None:
    counted = read_summary(write([started(), round_(1), round_(2)])).traffic
    assert (counted.rounds, counted.devices_per_round) == (2, 4)
    assert (counted.payload_up_bytes, counted.payload_down_bytes) == (1210, 16_412)
    assert counted.total_bytes == 2 * (1204 + 1198 + 1210 + 1201 + 4 * 16_412)
    assert read_summary(write([traffic()])).traffic == traffic()


def test_what_was_measured_twice_counts_as_measured_last(write: Write) -> None:
    first, second = stage("tuned", 2.0, 0.5, 10, 10, None), stage("tuned", 1.5, 0.6, 10, 10, None)
    layer = layers()[0]
    answers = [
        Sample("tuned", "p", "e", "old"),
        Sample("base", "p", "e", "b"),
        Sample("tuned", "p", "e", "new"),
    ]
    summary = read_summary(write([started(), first, layer, *answers, second, replace(layer, error=0.5)]))
    assert summary.stages == (second,)
    assert [found.error for found in summary.layers] == [0.5]
    assert [sample.answer for sample in summary.samples] == ["new", "b"]


def test_numbers_json_does_not_know_become_null(write: Write) -> None:
    diverged = replace(stage("tuned", 1.0, 0.0, 1, 1, None), loss=math.nan, perplexity=math.inf)
    folder = write([started(), replace(round_(1), train_loss=math.nan), diverged])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(write_summary(folder).read_text(), parse_constant=refuse)
    assert content["stages"][0]["loss"] is content["stages"][0]["perplexity"] is None
    assert content["rounds"][0]["train_loss"] is None


def test_lines_of_another_version_are_left_out() -> None:
    lines = [
        {"event": "of the future", "time": 1.0},
        {"event": "run_finished", "time": 2.0},
        {"event": "failed", "time": 3.0, "what": "x", "exit_code": 2, "of the future": 1},
    ]
    assert summarise(lines).failure == Failed("x", 2)


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event log"):
        write_summary(tmp_path)


def test_a_result_that_cannot_be_written_is_an_error(write: Write) -> None:
    folder = write([started()])
    (folder / "summary.json").mkdir()
    with pytest.raises(OutputError):
        write_summary(folder)
