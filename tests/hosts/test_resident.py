"""A device's process without a network: rounds on a real model, and whatever else a server may say."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from residents import Run, asked

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.blank import is_blank
from edgetune.core.errors import OutputError
from edgetune.core.quantised import Q4_0
from edgetune.export.gguf_file import write_gguf
from edgetune.federation.device import Device
from edgetune.federation.pipes import Message
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.kinds import ANSWER, BYE, ERROR, NO, OPENED, OVER, RECALL, REPLY
from edgetune.hosts.limits import Limits
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.embedded import embedded_folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with every round that is really computed."""
    found, inner = list[int](), Device.answer

    def counting(device: Device, *arguments: Any, **named: Any) -> bytes:
        found.append(1)
        return inner(device, *arguments, **named)

    monkeypatch.setattr(Device, "answer", counting)
    return found


def test_the_same_message_twice_gives_the_same_bytes_without_a_step(run: Run, steps: list[int]) -> None:
    resident = run.resident()
    opened = resident.answer(run.opening())
    assert (opened.kind, opened.head["examples"]) == (OPENED, 6)
    first = resident.answer(run.ask())
    again = resident.answer(run.ask())
    assert (first.kind, again.kind, again.head) == (REPLY, REPLY, {"again": True})
    assert (first.body, len(steps)) == (again.body, 1)
    other = run.resident()
    other.answer(run.opening())
    assert other.answer(run.ask()).body == first.body, "another process of the same device says the same"
    run.close(first.body)
    assert resident.answer(run.ask()).body != first.body


@pytest.mark.parametrize(
    ("method", "directions"),
    [
        ("fedkseed", "hadamard"),
        ("fedkseed", "rank_one_pool"),
        ("fedskip", "rank_one_pool"),
        ("fedsubspace", "rank_one_pool"),
    ],
)
def test_a_device_that_streams_leaves_a_file_s_matrices_in_it(
    method: str, directions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded, file = load_backbone("embedded"), tmp_path / "base.gguf"
    blocks = {
        name: round_to_nearest(weight, Q4_0, AbsMax(), name=name)
        for name, weight in embedded.model.named_parameters()
        if "mlp" in name
    }
    write_gguf(file, embedded.model, embedded.tokenizer, quantised=blocks)
    said = {"model__source": str(file), "model__residency": "streamed", "method__directions": directions}
    said |= {"method__name": method}
    run, opened = Run(tmp_path, settings=said), list[Backbone]()

    def opening(*given: Any, matrices: bool, **named: Any) -> Backbone:
        opened.append(load_backbone(*given, matrices=matrices or len(opened) > 0, **named))
        return opened[-1]

    monkeypatch.setattr("edgetune.hosts.resident.load_backbone", opening)
    mapped, held = run.resident(), run.resident()
    for resident in (mapped, held):
        assert resident.answer(run.opening()).kind == OPENED
    for _ in range(2):
        reply = mapped.answer(run.ask())
        assert reply.kind == REPLY
        assert held.answer(run.ask()).body == reply.body
        run.close(reply.body)
    assert (opened[0].base is None, opened[1].base is None) == (False, True)
    assert all(is_blank(one) for one in opened[0].model.parameters() if one.dim() > 1)


def test_a_message_that_builds_on_a_state_it_has_not_is_recalled(run: Run) -> None:
    resident = run.resident()
    resident.answer(run.opening())
    for _ in range(2):
        run.close(resident.answer(run.ask()).body)
    on = run.ask(held=1)
    kept = resident.answer(on)
    assert kept.kind == REPLY
    fresh = run.resident()
    assert fresh.answer(run.opening()).kind == OPENED
    assert fresh.answer(on) == Message(RECALL)
    whole = run.server.recall(on.body)
    assert whole is not None
    said = fresh.answer(asked(whole + on.body, on.head["turn"], recalled=len(whole)))
    assert (said.kind, said.body) == (REPLY, kept.body)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": "0" * 64}, "the base model is another than the server's"),
        ({"base": ["\x1b[2J"]}, "the base model is another than the server's"),
        ({"prompt": "0" * 64}, "the tokenizer, its chat template"),
        ({"method": "0" * 64}, "the method is another version than the server's"),
        ({"method": None}, "the method is another version than the server's"),
        ({"recipe": None}, "the server's settings are none of this version's"),
        ({"recipe": {"seed": -1}, "version": "\x1b[2J\ud800"}, "the server's settings are none of this version's"),
        ({"recipe": {"later_setting": 1}}, "the server's settings are none of this version's"),
        ({"recipe": {"method": {"name": "/tmp/evil.py"}}}, "no server has its code executed here"),
        ({"recipe": {"method": {"name": "no_such_method"}}}, "no_such_method"),
        ({"recipe": {"method": {"name": "../../evil"}}}, "evil"),
        ({"recipe": {"model": {"source": "owner/huge-model"}}}, "this base model is not here"),
        ({"recipe": {"model": {"source": "/no/such/folder"}}}, "this base model is not here"),
        ({"recipe": {"model": {"source": "/etc/passwd"}}}, "passwd"),
        ({"recipe": {"model": {"source": "x" * 5000}}}, "this base model is not here"),
        ({"recipe": {"model": {"source": "~nobody-of-that-name/x"}}}, "this base model is not here"),
        ({"recipe": {"threads": 10**9}}, "the server's settings are none of this version's"),
    ],
    ids=lambda one: None if isinstance(one, str) else json.dumps(one)[:40],
)  # fmt: skip
def test_a_run_that_is_not_this_devices_bars_it_with_one_line(
    run: Run, change: dict[str, Any], said: str
) -> None:
    resident = run.resident()
    answer = resident.answer(run.opening(**change))
    assert answer.kind == ERROR
    assert said in str(resident.barred)
    text = str(resident.barred)
    assert (len(text.splitlines()), "\ud800" in text) == (1, False)
    assert unseal(seal(answer)).head == answer.head
    assert resident.answer(asked(b"")).kind == ERROR, "it has been told of no run"


def test_a_base_that_is_called_otherwise_here_is_the_same_base(run: Run) -> None:
    here, there = run.resident(model=str(embedded_folder())), run.resident()
    assert [one.answer(run.opening()).kind for one in (here, there)] == [OPENED, OPENED], here.barred
    assert here.answer(run.ask()).body == there.answer(run.ask()).body


def test_no_server_has_a_model_downloaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    resident = run.resident()
    resident.answer(run.opening(recipe={"model": {"source": "owner/name"}}))
    assert "this base model is not here" in str(resident.barred)


def test_limits_refuse_a_round_and_not_the_next(run: Run) -> None:
    room = [0]
    resident = run.resident(limits=Limits(max_memory=10**9, resident=lambda: 10**6 + room[0]))
    resident.answer(run.opening())
    message = run.ask()
    room[0] = 10**9
    no = resident.answer(message)
    assert (no.kind, no.head["why"].startswith("too little memory")) == (NO, True)
    room[0] = 0
    assert resident.answer(message).kind == REPLY


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_the_beginning_ends_the_device_with_the_code_of_a_full_disk(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = run.resident()
    monkeypatch.setattr(Path, "mkdir", full)
    assert resident.answer(run.opening()).head["what"] == "cannot write: No space left on device"
    assert isinstance(resident.barred, OutputError)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), KeyError("a bug")]
)
def test_what_fails_in_a_round_is_a_reason_and_the_next_attempt_gives_the_same_bytes(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = run.resident()
    whole.answer(run.opening())
    message = run.ask()
    expected = whole.answer(message).body

    def fail(what: str, done: float, total: int) -> None:
        raise error

    resident = run.resident()
    resident.answer(run.opening())
    resident._progress = fail
    said = resident.answer(message)
    assert said.kind == (NO if isinstance(error, OSError) else ERROR)
    assert run.told[-1].split(" ")[0] in ("No", "there", "KeyError:"), "no space, no memory, a bug"
    resident._progress = lambda *_: None
    assert resident.answer(message).body == expected


HOSTILE: list[Callable[[dict[str, Any]], Any]] = [
    lambda head: {},
    *(
        lambda head, name=name, value=value: {**head, name: value}
        for name in ("device", "turn", "recalled", "choice", "start", "survey", "round")
        for value in (None, -1, 10**30, 1e308, "x", [], {}, "9" * 4000, "\ud800", True)
    ),
    *(
        lambda head, name=name: {key: value for key, value in head.items() if key != name}
        for name in ("device", "turn", "recalled", "choice", "start", "survey", "round")
    ),
]


def test_hostile_heads_and_bodies_are_answered_and_leave_the_device_as_it_was(run: Run) -> None:
    resident = run.resident()
    resident.answer(run.opening())
    message = run.ask()
    expected = resident.answer(message).body
    for change in HOSTILE:
        said = resident.answer(Message(ANSWER, change(message.head), message.body))
        assert said.kind in (REPLY, ERROR, NO, RECALL), change(message.head)
        seal(said)
    for body in (b"", b"\0" * 100, message.body[:-1], message.body + b"x", message.body[:20]):
        assert resident.answer(asked(body)).kind == ERROR
    for data in (b"", b"\xff" * 99, b"\0\0\0\0", seal(Message("nonsense\x1b", {"a": 1})), b"\x02\0\0\0[]"):
        assert unseal(resident.answered(data)).kind == ERROR
    assert all(line.isprintable() for line in run.told)
    assert (resident.barred, resident.over) == (None, False)
    assert resident.answer(message).body == expected
    assert (resident.answer(Message(OVER)), resident.over) == (Message(BYE), True)
