"""Devices side by side: the bits of one process, errors as they were, and no worker that outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from edgetune.core.errors import ConfigError, DataError, EdgetuneError
from edgetune.core.events import Event, RoundFinished, StageFinished
from edgetune.core.host_events import WorkerLost
from edgetune.core.ledger import read_ledger
from edgetune.core.progress import Progress, silent
from edgetune.federation import crew as module
from edgetune.federation import workers
from edgetune.federation.crew import Crew, Task
from edgetune.federation.opening import examples_of, share_of
from edgetune.federation.pipes import Message, from_error, receive, send, to_error
from edgetune.federation.workers import choose_workers, expected_seconds
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.recipe.recipe import load_recipe
from edgetune.run import pipeline

SMALL = [
    "data.held_out=4", "data.calibration=2", "data.records=40", "evaluation.max_new_tokens=2", "data.max_tokens=32",
    "method.local_steps=3", "method.batch_size=2", "federation.devices=4", "federation.participation=0.75",
    "federation.rounds=2", "threads=1",
]  # fmt: skip

IMITATION = """
import os, signal, sys
sys.path[:] = sys.argv[1:]
from edgetune.core.errors import DataError
from edgetune.federation.pipes import Message, from_error, receive, send
told, say = sys.stdin.buffer, sys.stdout.buffer
receive(told)
send(say, Message("ready", {"peak": 1000}))
while True:
    task = receive(told)
    if task.kind == "share":
        continue
    {doing}
"""
"""A worker that speaks the protocol and loads nothing."""
REPLIES = (
    'send(say, Message("progress", {"what": "x", "done": 1, "total": 2})); '
    'send(say, Message("reply", {"peak": 2000}, b"worker:" + task.body + bytes([task.head["turn"]])))'
)
DIES = "os.kill(os.getpid(), signal.SIGKILL)"
FAILS = 'send(say, from_error(DataError("no good", where="device 2", hint="try another")))'
BREAKS = 'send(say, from_error(KeyError("x")))'


class Here:
    """A device of this process; it answers when it may."""

    def __init__(self, may: threading.Event | None = None) -> None:
        self._may = may

    def answer(self, payload: bytes, turn: int, progress: Any, choice: bytes | None) -> bytes:
        assert choice is None
        if self._may is not None:
            assert self._may.wait(60)
        progress("x", 1, 2)
        return b"here:" + payload + bytes([turn])


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Crew]:
    def make(doing: str, helpers: int = 1, heard: list[Event] | None = None, **more: Any) -> Crew:
        monkeypatch.setattr(module, "MAIN", IMITATION.replace("{doing}", doing))
        listener = (heard if heard is not None else []).append
        share = more.pop("share", lambda id: Message("share", {"device": id}))
        return Crew(helpers, Message("open"), share, listener=listener)

    return make


def tasks(count: int) -> list[Task]:
    return [Task(id, b"%d" % id, id + 1) for id in range(count)]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pids(crew: Crew) -> list[int]:
    return [helper._process.pid for helper in crew._helpers if helper._process is not None]


def test_this_process_and_its_workers_share_the_devices_of_a_round(crew: Callable[..., Crew]) -> None:
    may, told, moved = threading.Event(), list[int](), list[Any]()

    def share(device: int) -> Message:
        told.append(device)
        return Message("share", {"device": device})

    def progress(*what: Any) -> None:
        moved.append(what)
        may.set()  # a worker is at work, so this process may answer

    with crew(REPLIES, share=share) as made:
        made.enlist(dict.fromkeys(range(4), Here(may)))  # type: ignore[arg-type]
        made.wait()
        assert (made.processes, made.beside_bytes) == (2, 1000)
        replies = made.answer(tasks(4), progress)
        assert list(replies) == [0, 1, 2, 3], "in the order of the devices, whoever was first"
        assert {reply.split(b":")[0] for reply in replies.values()} == {b"here", b"worker"}
        assert [reply.split(b":")[1] for reply in replies.values()] == [
            b"%d%c" % (id, id + 1) for id in range(4)
        ]
        assert made.beside_bytes == 2000
        first = list(told)
        assert len(set(first)) == len(first) >= 1
        made.answer(tasks(4))
        assert len(set(told)) == len(told), "a worker is told of a device once"
        found = pids(made)
    assert all(map(gone, found))
    assert ("x", 1, 2) in moved


def test_without_workers_this_process_does_everything(crew: Callable[..., Crew]) -> None:
    with crew(REPLIES, helpers=0) as made:
        replies = made.enlist(dict.fromkeys(range(3), Here())).answer(tasks(3))  # type: ignore[arg-type]
    assert all(reply.startswith(b"here:") for reply in replies.values())
    assert (made.processes, made.beside_bytes) == (1, 0)


def test_a_device_whose_worker_was_killed_is_done_again(crew: Callable[..., Crew]) -> None:
    heard, may = list[Event](), threading.Event()
    with crew(DIES, heard=heard) as made:
        made.enlist(dict.fromkeys(range(3), Here(may)))  # type: ignore[arg-type]
        made.wait()
        lost = made.lost

        def noticed(*given: Any) -> None:
            lost(*given)
            may.set()

        made.lost = noticed  # type: ignore[method-assign]
        replies = made.answer(tasks(3))
        assert all(reply.startswith(b"here:") for reply in replies.values())
        (event,) = heard
        assert isinstance(event, WorkerLost)
        assert event.device in range(3)
        assert event.code == -signal.SIGKILL
        assert (made.processes, made.beside_bytes) == (1, 0)
        assert len(made.answer(tasks(3))) == 3


def test_a_worker_that_never_comes_up_is_said_and_missed_by_nobody(
    crew: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = list[Event]()
    made = crew(REPLIES, heard=heard)
    monkeypatch.setattr(module, "MAIN", "raise SystemExit(3)")
    with made:
        made.wait()
        assert len(made.enlist(dict.fromkeys(range(2), Here())).answer(tasks(2))) == 2  # type: ignore[arg-type]
    assert heard == [WorkerLost(None, 3)]


@pytest.mark.parametrize(("doing", "kind"), [(FAILS, DataError), (BREAKS, RuntimeError)])
def test_an_error_in_a_worker_is_the_error_of_the_run(
    doing: str, kind: type[Exception], crew: Callable[..., Crew]
) -> None:
    may = threading.Event()
    with crew(doing) as made:
        made.enlist(dict.fromkeys(range(4), Here(may)))  # type: ignore[arg-type]
        made.wait()
        failed = made.failed

        def noticed(error: BaseException) -> None:
            failed(error)
            may.set()  # the device of this process tells how far it is, and is stopped there

        made.failed = noticed  # type: ignore[method-assign]
        with pytest.raises(kind) as raised:
            made.answer(tasks(4))
        found = pids(made)
    assert all(map(gone, found))
    if kind is DataError:
        assert str(raised.value) == "device 2: no good (try another)"
    else:
        assert "KeyError" in str(raised.value)


def test_an_error_in_this_process_ends_the_workers(crew: Callable[..., Crew]) -> None:
    class Interrupted(Here):
        def answer(self, *given: Any) -> bytes:
            raise KeyboardInterrupt

    found = list[int]()

    def interrupted() -> None:
        with crew("pass", helpers=2) as made:
            made.enlist(dict.fromkeys(range(4), Interrupted()))  # type: ignore[arg-type]
            made.wait()
            found.extend(pids(made))
            made.answer(tasks(4))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(found) == 2
    assert all(map(gone, found))


def test_a_worker_that_will_not_end_is_killed(
    crew: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with crew("import time; time.sleep(1000)") as made:
        made.wait()
        made._helpers[0]._process.stdin.write(b"\0" * 12)  # type: ignore[union-attr]
        found = pids(made)
    assert all(map(gone, found))


def test_messages_keep_what_they_carry() -> None:
    left, right = os.pipe()
    with os.fdopen(left, "rb") as source, os.fdopen(right, "wb") as sink:
        message = Message("answer", {"device": 3, "turn": 0}, bytes(range(256)))
        send(sink, message)
        send(sink, Message("ready"))
        assert receive(source) == message
        assert receive(source) == Message("ready")
        sink.write(b"\x05\x00")
        sink.close()
        with pytest.raises(EOFError):
            receive(source)
    error = to_error(from_error(ConfigError("what", where=Path("where"), hint="hint")))
    assert isinstance(error, ConfigError)
    assert (str(error), error.exit_code) == ("where: what (hint)", 2)
    from edgetune.data.encode import Example

    share = [Example((1, 2, 3), 2), Example((9,) * 50, 1)]
    assert examples_of(share_of({7: share}, 7)) == share


def waiting_for_workers(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[Crew], None] = lambda crew: None
) -> None:
    """Let rounds begin once the workers have loaded the model: these runs are too short to have them otherwise."""
    answer = Crew.answer

    def patient(self: Crew, tasks: list[Task], progress: Progress = silent) -> dict[int, bytes]:
        self.wait()
        then(self)
        return answer(self, tasks, progress)

    monkeypatch.setattr(Crew, "answer", patient)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("mezo", ["model.dtype=bfloat16", "method.eps=1e-2", "method.learning_rate=1e-3"]),
        (
            "fedkseed",
            ["method.pool=64", "method.objective=token_f1", "method.answer_tokens=2", "method.eps=0.1"],
        ),
        ("lora", []),
        ("fedselft", ["method.layer_budget=2", "method.learning_rate=0.05"]),
        ("fedselft", ["method.target=lora", "method.initialiser=gaussian"]),
        ("fedpeptao", ["method.spectrum_steps=3"]),
        ("lora", ["method.initialiser=pissa"]),
        ("lora", ["method.initialiser=lora_ga"]),
    ],
)
def test_worker_processes_give_the_bits_of_one(
    method: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, events, moved = {}, dict[int, list[Event]](), list[tuple[str, int, int]]()

    def interrupted(crew: Crew) -> None:
        for pid in pids(crew):
            os.kill(pid, signal.SIGINT)  # a terminal sends Ctrl-C to all; only the run decides

    waiting_for_workers(monkeypatch, interrupted)
    for number in (1, 2):
        recipe = load_recipe(None, [*SMALL, *more, f"federation.workers={number}"], method__name=method)
        heard, out = list[Event](), tmp_path / str(number)
        pipeline.run(
            recipe, out, command="x", stages=pipeline.TUNING, listener=heard.append,
            progress=lambda *what: moved.append(what),
        )  # fmt: skip
        ledger = read_ledger(out / "tuned.ledger")
        rounds = [event for event in heard if isinstance(event, RoundFinished)]
        found[number] = (
            ledger.digest,
            ledger.weights_digest,
            [(one.digest, one.loss, one.train_loss) for one in rounds],
        )
        events[number] = heard
        assert {one.processes for one in rounds} == {number}
        assert not [event for event in heard if isinstance(event, WorkerLost)]
        kept = ["start.safetensors"] if "initialiser" in str(more) else []
        kept += ["tuned.optimiser-2.safetensors"] if method == "fedpeptao" else []
        wanted = sorted(["events.jsonl", "manifest.json", *kept, "tuned.ledger"])
        assert sorted(one.name for one in out.iterdir()) == wanted
    assert found[1] == found[2]
    peaks = {
        number: max(one.peak_memory_bytes for one in heard if isinstance(one, RoundFinished))
        for number, heard in events.items()
    }
    assert peaks[2] > peaks[1] + 2e8, "the peak covers the worker"  # libraries and a model
    (tuned,) = [one for one in events[2] if isinstance(one, StageFinished) and one.name == "tuned"]
    assert tuned.peak_memory_bytes >= peaks[2]
    assert {done for what, done, total in moved if what.startswith("device")} >= {3}


def test_a_worker_ends_when_its_run_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "from edgetune.federation.crew import Crew\n"
        "from edgetune.federation.pipes import Message\n"
        "crew = Crew(2, Message('nothing'), None, listener=print)\n"
        "for helper in crew._helpers: helper._run = lambda process: None\n"
        "crew.__enter__()\n"
        "print(*[helper._process.pid for helper in crew._helpers], flush=True)\n"
        "time.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert run.stdout is not None
    found = [int(pid) for pid in run.stdout.readline().split()]
    assert len(found) == 2
    assert not any(map(gone, found))
    run.kill()
    run.wait()
    run.stdout.close()
    for pid in found:
        for _ in range(6000):
            if gone(pid):
                break
            threading.Event().wait(0.02)
        assert gone(pid)


def prepared(recipe: Any, weights: int = 1_000_000, device: str = "cpu") -> Any:
    shares = {id: [SimpleNamespace(input_ids=range(50))] * 4 for id in range(recipe.federation.devices or 20)}
    parameters = [SimpleNamespace(numel=lambda: weights)]
    model = SimpleNamespace(device=SimpleNamespace(type=device), parameters=lambda: parameters)
    method = with_options(tuning_method("fedkseed"), {"batch_size": 2})
    return SimpleNamespace(
        recipe=recipe, devices=shares, method=method, backbone=SimpleNamespace(model=model)
    )


@pytest.mark.parametrize(
    ("settings", "cores", "free", "expected"),
    [
        ({}, 4, 100, 4),
        ({}, 64, 100, 5),  # devices of a round
        ({}, 64, 6, 4),  # half of what is free holds three models more
        ({}, 64, 1, 1),
        ({}, 1, 100, 1),
        ({"federation.rounds": 1, "method.local_steps": 10}, 64, 100, 1),
        ({"federation.workers": 1}, 64, 100, 1),
        ({"federation.workers": 3}, 1, 100, 3),
        ({"federation.workers": 9}, 1, 100, 5),
        ({"federation.workers": 3}, 1, 3, "over half"),
    ],
)
def test_workers_are_as_many_as_cores_memory_and_work_allow(
    settings: dict[str, int], cores: int, free: int, expected: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = 1 << 30
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    monkeypatch.setattr(workers, "usable_memory", lambda: free * own)
    monkeypatch.setattr(workers, "resident_bytes", lambda: own)
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 1)
    wide = ["federation.devices=50", "federation.participation=0.1", "federation.rounds=20"]
    recipe = load_recipe(None, [*wide, *(f"{key}={value}" for key, value in settings.items())])
    made = prepared(recipe)
    made.method = with_options(made.method, {"local_steps": settings.get("method.local_steps", 200)})
    rounds = recipe.federation.rounds
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            choose_workers(made, rounds)
        return
    assert choose_workers(made, rounds) == expected
    assert choose_workers(made, 0) == 1
    made.backbone.model.device.type = "cuda"
    assert choose_workers(made, rounds) == 1


def test_threads_take_their_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 8)
    monkeypatch.setattr(workers, "usable_memory", lambda: 1 << 40)
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 3)
    assert choose_workers(prepared(load_recipe(None, ["federation.devices=90"])), 1000) == 2


def test_expected_work_counts_what_forward_passes_multiply() -> None:
    made = prepared(load_recipe(None))
    steps = 7 * made.method.local_steps
    assert expected_seconds(made, 7) == pytest.approx(steps * 2 * 1e6 * 50 * 2 * 2 / workers.OPERATIONS)
    counted = {
        name: with_options(tuning_method(method), options).estimate.passes
        for name, method, options in (
            ("two", "mezo", {}), ("six", "mezo", {"directions_per_step": 3}), ("backward", "lora", {}),
            ("four", "mezo", {"estimate": "one_sided", "directions_per_step": 3}),
        )
    }  # fmt: skip
    assert counted == {"two": 2, "six": 6, "backward": 3, "four": 4}


def test_a_refused_number_of_workers_leaves_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "usable_memory", lambda: 1)
    recipe = load_recipe(None, [*SMALL, "federation.workers=2"])
    with pytest.raises(EdgetuneError, match="over half"):
        pipeline.run(recipe, tmp_path, command="x", stages=pipeline.TUNING, listener=print)
    assert not (tmp_path / "events.jsonl").exists()
