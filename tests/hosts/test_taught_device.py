"""A device with a teacher of its own: the bits of a simulation, and every teacher refused that is not the server's."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, DataError, DigestError, EdgetuneError, LimitError, ModelError
from edgetune.federation.device import Device
from edgetune.federation.pipes import Message
from edgetune.federation.server import Server
from edgetune.federation.worker import Worker
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.examples import examples_of_file
from edgetune.hosts.kinds import ANSWER, ERROR, OPENED, REPLY
from edgetune.hosts.lessons import served_lesson
from edgetune.hosts.limits import Limits
from edgetune.hosts.opening import opening_of
from edgetune.hosts.resident import Own, Resident
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import load_recipe

SETTINGS = {
    "method.name": "fedkseed", "method.local_steps": 4, "method.batch_size": 2, "method.learning_rate": 1e-3,
    "method.eps": 1e-3, "data.max_tokens": 40, "data.held_out": 3, "data.calibration": 3,
    "evaluation.max_new_tokens": 4, "distillation.max_new_tokens": 4, "federation.devices": 2,
}  # fmt: skip
ROWS = [{"instruction": f"say {n % 5}", "response": f"it is {n % 5} of {n}"} for n in range(24)]


class Run:
    """A server whose run has a teacher, without a network, and one device's data."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.told = folder, list[str]()
        self.data, served = folder / "local.jsonl", folder / "server.jsonl"
        for path, rows in ((self.data, ROWS[:8]), (served, ROWS[8:])):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = {
            **SETTINGS,
            "data.source": served,
            **{key.replace("__", "."): one for key, one in settings.items()},
        }
        recipe = load_recipe(None, [f"{key}={one}" for key, one in said.items() if one is not None])
        prepared = prepare(recipe, split=False)
        self.prepared = replace(prepared, lesson=served_lesson(prepared))
        self.opening = opening_of(self.prepared)
        self.worker = Worker(
            self.prepared.backbone, self.prepared.method, recipe.seed, lesson=self.prepared.lesson
        )
        self.server = Server(
            self.worker.method, self.worker.identity, [0], participation=1, seed=recipe.seed,
            state=self.worker.tuned.state(), minimum=1, round=0, layers=self.worker.layers,
            initial=self.worker.initial,
        )  # fmt: skip

    def resident(self, teacher: Path | str | None, **more: Any) -> Resident:
        own = Own(
            self.data, None, more.pop("model", None), None, self.folder / "scratch", more.pop("limits", Limits()),
            None if teacher is None else str(teacher),
        )  # fmt: skip
        return Resident(own, tell=self.told.append)

    def refusal(
        self, teacher: Path | str | None, opening: Message | None = None, **more: Any
    ) -> EdgetuneError:
        resident = self.resident(teacher, **more)
        answer = resident.answer(opening or self.opening)
        assert answer.kind == ERROR
        assert resident.barred is not None
        assert unseal(seal(answer)).head == answer.head
        return resident.barred

    def asked(self) -> Message:
        head = {
            "device": 0,
            "turn": 0,
            "survey": False,
            "choice": None,
            "start": "",
            "recalled": 0,
            "round": 1,
        }
        return Message(ANSWER, head, self.server.open_round({})[0])

    def here(self) -> Device:
        """The device in the server's process, as a simulation has it."""
        examples = examples_of_file(self.prepared.recipe, self.prepared.backbone, self.data, None)
        return Device(0, examples, self.worker, pad_id=self.prepared.pad_id)


@pytest.fixture
def run(tmp_path: Path, save_tiny: Callable[..., Path]) -> Run:
    return Run(tmp_path, model__source=save_tiny(), distillation__teacher=save_tiny(seed=1))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"distillation__on_policy": 1, "distillation__reward": "token_f1", "distillation__regenerate_every": 2},
        {"distillation__on_policy": 0, "distillation__beta": 0},
        {"method__name": "fedavg", "method__eps": None, "distillation__on_policy": 0.5},
        {"method__name": "dpzero", "distillation__on_policy": 0, "method__clip": 5, "method__epsilon": 0,
         "method__noise_multiplier": 0.1, "method__learning_rate": 1e-3},
    ],
    ids=["half on-policy", "rewarded", "supervised", "dense", "private"],
)  # fmt: skip
def test_a_device_answers_with_the_bits_of_a_simulated_one(
    tmp_path: Path, save_tiny: Callable[..., Path], more: dict[str, Any]
) -> None:
    run = Run(tmp_path, model__source=save_tiny(), distillation__teacher=save_tiny(seed=1), **more)
    resident = run.resident(save_tiny(seed=1, name="my own copy"))
    opened = resident.answer(run.opening)
    assert (opened.kind, opened.head.get("examples")) == (OPENED, 8), resident.barred
    message = run.asked()
    reply = resident.answer(message)
    assert reply.kind == REPLY, reply.head
    if not run.prepared.method.private:  # whose batches and noise nobody can know beforehand
        assert reply.body == run.here().answer(message.body)
    assert run.server.close_round({0: reply.body}).refused == {}


def test_what_is_learnt_is_the_teachers(tmp_path: Path, save_tiny: Callable[..., Path]) -> None:
    replies = set[bytes]()
    for number, teacher in enumerate([save_tiny(seed=1), save_tiny(seed=2), None]):
        (folder := tmp_path / str(number)).mkdir()
        run = Run(folder, model__source=save_tiny(), distillation__teacher=teacher,
                  distillation__max_new_tokens=None if teacher is None else 4)  # fmt: skip
        resident = run.resident(teacher)
        resident.answer(run.opening)
        replies.add(resident.answer(run.asked()).body[24:])
    assert len(replies) == 3


def test_a_device_that_was_given_no_teacher_says_what_to_do(run: Run) -> None:
    refused = run.refusal(None)
    assert isinstance(refused, ConfigError)
    assert refused.where == "--teacher"
    assert run.worker.lesson is not None
    assert run.worker.lesson.teacher.named[:12] in refused.what
    assert "a copy of the server's llama-1" in str(refused.hint)


def test_another_teacher_and_another_vocabulary_are_told_apart(
    run: Run, save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    other = run.refusal(save_tiny(seed=2))
    assert isinstance(other, DigestError)
    assert "the teacher is another than the server's" in other.what
    words = run.refusal("embedded")
    assert isinstance(words, ConfigError)
    assert "different vocabularies" in words.what
    assert isinstance(run.refusal(tmp_path / "nowhere"), ModelError)
    asked = save_tiny(seed=1, name="asked")  # the same weights, asked otherwise
    (asked / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert isinstance(run.refusal(asked), DigestError)


def test_no_server_names_a_teacher_that_is_then_loaded_here(run: Run) -> None:
    """The server's own path exists on this machine, and giving none is still no consent."""
    assert Path(run.opening.head["recipe"]["distillation"]["teacher"]).exists()
    assert isinstance(run.refusal(None), ConfigError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lesson": None}, "does not say which teacher"),
        ({"lesson": {"shared": "x", "teacher": 3, "top": None, "ends": [0]}}, "does not say which teacher"),
        ({"lesson": {"shared": "x", "teacher": "y", "top": None, "ends": [True]}}, "does not say which teacher"),
        ({"lesson": {"shared": "x", "teacher": "\x1b[2J", "top": None, "ends": [0]}}, "is another than the server's"),
        ({"lesson": {"shared": "x", "teacher": "y", "top": None, "ends": [10**9]}}, "ends of an answer"),
        ({"ends": [5]}, "the lesson is another"),
        ({"shared": "0" * 64}, "the lesson is another"),
        ({"reward": "/tmp/evil.py"}, "no server has its code executed"),
        ({"temperature": 0.5}, "the lesson is another"),
        ({"teacher_logits": "x"}, "two teachers"),
    ],
    ids=lambda one: None if isinstance(one, str) else json.dumps(one)[:40],
)  # fmt: skip
def test_terms_that_do_not_hold_bar_the_device_with_one_line(
    run: Run, save_tiny: Callable[..., Path], change: dict[str, Any], said: str
) -> None:
    head = json.loads(json.dumps(run.opening.head))
    for name, value in change.items():
        if name in head:
            head[name] = value
        elif name in head["lesson"]:
            head["lesson"][name] = value
        else:
            head["recipe"]["distillation"][name] = value
    refused = str(run.refusal(save_tiny(seed=1), Message(run.opening.kind, head)))
    assert said in refused
    assert (len(refused.splitlines()), "\x1b" in refused) == (1, False)


def test_a_teacher_that_does_not_fit_is_refused_before_it_is_loaded(
    run: Run, save_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = save_tiny(seed=1)
    size = (teacher / "model.safetensors").stat().st_size
    room = [10**6]
    limits = Limits(max_memory=10**6 + size, resident=lambda: room[0])
    assert run.resident(teacher, limits=limits).answer(run.opening).kind == OPENED
    room[0] += 1
    monkeypatch.setattr("edgetune.hosts.lessons.lesson_of", lambda *_, **__: pytest.fail("it was loaded"))
    refused = run.refusal(teacher, limits=limits)
    assert isinstance(refused, LimitError)
    assert "the teacher needs" in refused.what


def test_the_same_run_opened_again_with_another_teacher_bars_the_device(
    run: Run, tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    resident = run.resident(save_tiny(seed=1))
    assert resident.answer(run.opening).kind == OPENED
    assert resident.answer(run.opening).kind == OPENED, "a server that came back"
    (tmp_path / "later").mkdir()
    save_tiny(seed=2, name="llama-1")  # the server's folder holds another model now
    there = Run(
        tmp_path / "later", model__source=tmp_path / "llama-0", distillation__teacher=tmp_path / "llama-1"
    )
    said = {**there.opening.head, "recipe": run.opening.head["recipe"]}
    assert resident.answer(Message(there.opening.kind, said)).kind == ERROR
    assert isinstance(resident.barred, DigestError)


def test_a_teacher_that_nobody_asks_for_is_said_to_be_of_no_use(
    tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    run = Run(tmp_path, model__source=save_tiny(), distillation__max_new_tokens=None)
    assert run.resident(save_tiny(seed=1)).answer(run.opening).kind == OPENED
    assert any("--teacher is not used" in line for line in run.told)


@pytest.fixture
def stored(tmp_path: Path, save_tiny: Callable[..., Path]) -> Run:
    """A run that learns from files, the server's about its own records."""
    student, teacher, said = save_tiny(), save_tiny(seed=1), tmp_path / "server.safetensors"
    bare = Run(tmp_path, model__source=student, distillation__max_new_tokens=None)
    sets = [f"--set={key}={SETTINGS[key]}" for key in ("data.max_tokens", "evaluation.max_new_tokens")]
    words = ["teach", str(teacher), "--model", str(student), "--data", str(tmp_path / "server.jsonl")]
    assert execute([*words, "--top", "8", "--out", str(said), "--quiet", *sets]) == 0
    del bare
    return Run(tmp_path, model__source=student, distillation__teacher_logits=said)


def _made(refused: EdgetuneError, teacher: Path, out: Path, **more: str) -> Path:
    """Do what a refusal says, with this teacher."""
    found = re.search(r"edgetune (teach .*?), then --teacher", str(refused.hint))
    assert found is not None, refused.hint
    words = [
        {"TEACHER": str(teacher), "said.safetensors": str(out)}.get(one, one) for one in shlex.split(found[1])
    ]
    for name, value in more.items():
        words[words.index(f"--{name}") + 1] = value
    assert execute([*words, "--quiet"]) == 0
    return out


def test_a_device_without_room_for_a_teacher_learns_from_a_file_of_its_own_records(
    stored: Run, tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    refused = stored.refusal(None)
    assert isinstance(refused, ConfigError)
    own = _made(refused, save_tiny(seed=1), tmp_path / "own.safetensors")
    resident = stored.resident(own)
    opened = resident.answer(stored.opening)
    assert (opened.kind, opened.head.get("examples")) == (OPENED, 8), resident.barred
    reply = resident.answer(stored.asked())
    assert reply.kind == REPLY
    assert stored.server.close_round({0: reply.body}).refused == {}


def test_a_file_that_knows_more_records_than_a_devices_gives_the_bits_of_a_simulation_with_it(
    stored: Run, tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    every = tmp_path / "every.jsonl"
    every.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    both = _made(stored.refusal(None), save_tiny(seed=1), tmp_path / "both", data=str(every))
    (tmp_path / "simulated").mkdir()
    simulated = Run(
        tmp_path / "simulated", model__source=tmp_path / "llama-0", distillation__teacher_logits=both
    )
    message = stored.asked()
    resident = stored.resident(both)
    assert resident.answer(stored.opening).kind == OPENED
    assert resident.answer(message).body == simulated.here().answer(message.body)


def test_files_of_others_of_fewer_tokens_and_of_other_records_are_refused(
    stored: Run, tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    refused, teacher = stored.refusal(None), save_tiny(seed=1)
    others = _made(refused, save_tiny(seed=2), tmp_path / "others")
    assert "the teacher is another" in stored.refusal(others).what
    fewer = _made(refused, teacher, tmp_path / "fewer", top="4")
    assert "names 4 tokens at a position, the server's 8" in stored.refusal(fewer).what
    served = stored.refusal(tmp_path / "server.safetensors")
    assert isinstance(served, DataError)
    assert "said nothing of 8 of 8 records" in served.what
    assert isinstance(stored.refusal(stored.data), DataError), "no such file at all"


def test_a_model_and_what_it_said_do_not_stand_for_each_other(
    stored: Run, tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    model = stored.refusal(save_tiny(seed=1))
    assert isinstance(model, ConfigError)
    assert "learns from what a teacher said" in model.what
    (tmp_path / "model").mkdir()
    run = Run(tmp_path / "model", model__source=save_tiny(), distillation__teacher=save_tiny(seed=1))
    said = run.refusal(tmp_path / "server.safetensors")
    assert isinstance(said, ConfigError)
    assert "learns from the teacher itself" in said.what


def test_a_server_whose_file_is_of_other_records_than_its_own_is_refused(
    stored: Run, tmp_path: Path, save_tiny: Callable[..., Path]
) -> None:
    own = _made(stored.refusal(None), save_tiny(seed=1), tmp_path / "own.safetensors")
    with pytest.raises(DataError, match="said nothing of"):
        Run(tmp_path, model__source=save_tiny(), distillation__teacher_logits=own)
