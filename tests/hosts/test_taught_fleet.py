"""Devices that each have the teacher, as processes over TLS: the ledger is the simulation's, wrong ones stay out."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fleets import Federation
from processes import Processes

from edgetune.core.event_log import read_events
from edgetune.core.ledger import read_ledger
from edgetune.models.backbone import load_backbone
from edgetune.models.quiet import quiet
from edgetune.run import pipeline

pytest.importorskip("flwr")
TEACHER = "distillation.teacher"
TAUGHT: dict[str, Any] = {
    "distillation.on_policy": 0.5, "distillation.max_new_tokens": 4, "distillation.beta": 0.25,
    "distillation.regenerate_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two models of the embedded one's vocabulary."""
    folders = []
    for seed in (1, 2):
        backbone = load_backbone("embedded")
        torch.manual_seed(seed)
        for weight in backbone.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
        folders.append(tmp_path_factory.mktemp("teachers") / f"teacher-{seed}")
        with quiet():
            backbone.model.save_pretrained(folders[-1])
            backbone.tokenizer.save_pretrained(folders[-1])
    return folders[0], folders[1]


def _simulated(fleet: Federation, out: Path) -> list[dict[str, Any]]:
    """Do the run in this process, and see that it ends as the fleet's did."""
    pipeline.run(fleet.recipe, out, stages=pipeline.TUNING)
    assert fleet.digest == read_ledger(out / "tuned.ledger").digest
    return _rounds(out)


def _rounds(out: Path) -> list[dict[str, Any]]:
    fields = ("round", "payload_up_bytes", "payload_down_bytes", "digest", "loss", "train_loss")
    events = [one for one in read_events(out / "events.jsonl") if one["event"] == "round"]
    return [{name: one[name] for name in fields} for one in events]


def _ended(fleet: Federation, *devices: Any) -> str:
    """Run a server and its devices to the end; returns what the server said."""
    server = fleet.server()
    server.start().wait_for("listening on")
    for one in devices:
        one.start()
    assert [one.wait(120) for one in (server, *devices)] == [0] * (1 + len(devices)), server.said
    return server.said


@pytest.mark.parametrize(("method", "many"), [("fedkseed", 3), ("fedit", 2)])
def test_devices_that_learn_on_their_own_responses_give_the_simulations_ledger(
    tmp_path: Path, teachers: tuple[Path, Path], method: str, many: int
) -> None:
    with Processes(tmp_path) as processes:
        fleet = Federation(tmp_path, processes, method, many, 2, {**TAUGHT, TEACHER: str(teachers[0])})
        for id, path in enumerate(teachers[:1] * many):
            (tmp_path / f"copy-{id}").symlink_to(path)
        devices = [fleet.device(id, more=("--teacher", tmp_path / f"copy-{id}")) for id in range(many)]
        _ended(fleet, *devices)
        assert "learns from copy-0" in devices[0].said
    assert _simulated(fleet, tmp_path / "alone") == _rounds(fleet.out)
    assert len(_rounds(fleet.out)) == 2


@pytest.mark.fleet
def test_a_server_and_a_device_that_are_killed_change_no_bit_of_what_is_learnt_on_own_responses(
    tmp_path: Path, teachers: tuple[Path, Path]
) -> None:
    with Processes(tmp_path) as processes:
        fleet = Federation(tmp_path, processes, "fedkseed", 2, 2, {**TAUGHT, TEACHER: str(teachers[0])})
        devices = [fleet.device(id, more=("--teacher", teachers[0])).start() for id in (0, 1)]
        server = fleet.server().start("after_first_reply:2")
        assert server.wait(120) == -signal.SIGKILL, server.said
        devices[1].kill()
        devices[1].start()
        server.start()
        assert [one.wait(120) for one in (server, *devices)] == [0, 0, 0], server.said
    assert len(_simulated(fleet, tmp_path / "alone")) == 2


def test_a_device_with_another_teacher_or_none_ends_and_a_good_one_is_taken(
    tmp_path: Path, teachers: tuple[Path, Path]
) -> None:
    few = {"federation.minimum_replies": 1, "federation.participation": 0.34}
    with Processes(tmp_path) as processes:
        fleet = Federation(
            tmp_path, processes, "fedkseed", 3, 2, {**TAUGHT, TEACHER: str(teachers[0]), **few}
        )
        server = fleet.server("127.0.0.1", "--timeout", "3", "--wait", "1").start()
        server.wait_for("listening on")
        none = fleet.device(1).start()
        other = fleet.device(2, more=("--teacher", teachers[1])).start()
        assert (none.wait(90), other.wait(90)) == (2, 5), (none.said, other.said)
        good = fleet.device(0, more=("--teacher", teachers[0])).start()
        good.wait_for("learns from")
        server.stop()
    assert "this device was given none" in none.said
    assert "--teacher PATH" in none.said
    assert "the teacher is another than the server's" in other.said
