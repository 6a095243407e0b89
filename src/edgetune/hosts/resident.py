"""The process on a device: the base model loaded once, and every message of the server answered with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgetune.core.errors import LONGEST, DigestError, EdgetuneError, LimitError
from edgetune.core.files import unwritable
from edgetune.core.progress import Progress, silent
from edgetune.core.reasons import shortened
from edgetune.data.encode import Example, padding_id
from edgetune.federation.device import Device
from edgetune.federation.hands import Task
from edgetune.federation.pipes import Message, from_error
from edgetune.federation.start import Start
from edgetune.federation.tasks import task_of
from edgetune.federation.worker import Worker
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.examples import examples_of_file
from edgetune.hosts.kinds import ANSWER, BYE, NO, OPEN, OPENED, OVER, RECALL, REPLY
from edgetune.hosts.lessons import check_lesson, own_lesson, taught_by
from edgetune.hosts.limits import Limits
from edgetune.hosts.opening import check_base, recipe_told
from edgetune.measure.machine import resident_bytes
from edgetune.measure.memory import PeakMemory
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.device import find_device
from edgetune.recipe.lesson import check_taught
from edgetune.recipe.prepare import DTYPES, recipe_method
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.residency import RESIDENCIES


@dataclass(frozen=True, slots=True)
class Own:
    """What is the device's own.

    Args:
        data: file of its records.
        columns: which column says what, if it does not follow the names that are known.
        model: where the base model is; where the server's recipe says if not given.
        method: a file of a method that does not come with edgetune.
        scratch: folder for what is set aside on disk.
        limits: what it will do.
        teacher: where the run's teacher is, or a file of what it said of these records; a run with one is refused
            without.
    """

    data: Path
    columns: dict[str, str] | None
    model: str | None
    method: Path | None
    scratch: Path
    limits: Limits
    teacher: str | None = None


class Resident:
    """Answers the messages of a server; what goes wrong is an answer too.

    The reply to a round is a function of its state, so that the last one is kept: a server that was killed before it
    had it for good asks again and gets the same bytes without a step.

    Args:
        own: data, model and limits of this device.
        tell: told in one line what happens.
        progress: told after every local step.
    Cost: one copy of the model beside its memory-mapped base, the encoded records, and one reply.
    """

    def __init__(self, own: Own, *, tell: Callable[[str], None], progress: Progress = silent) -> None:
        self._own, self._tell, self._progress = own, tell, progress
        self._recipe: Recipe | None = None
        self._backbone: Backbone | None = None
        self._worker: Worker | None = None
        self._device: Device | None = None
        self._examples = list[Example]()
        self._last: tuple[tuple[object, ...], bytes] | None = None
        self._needed, self.over = 0, False
        self.barred: EdgetuneError | None = None
        """What keeps this device out of the run, once it has been told to the server."""
        self._does: dict[str, Callable[[Message], Message]] = {
            OPEN: self._open, ANSWER: self._answer, OVER: self._end,
        }  # fmt: skip

    def answered(self, data: bytes) -> bytes:
        """Return the answer to a message as it travels; a damaged one is answered too."""
        try:
            message = unseal(data)
        except DigestError as error:
            self._tell(str(error))
            return seal(from_error(error))
        return seal(self.answer(message))

    def answer(self, message: Message) -> Message:
        """Return the answer to a message."""
        try:
            known = self._does.get(message.kind)
            if known is None:
                raise DigestError(f"a message of a kind that is not known: {message.kind[:40]!r}")
            return known(message)
        except MemoryError:
            self._tell("out of memory")
            return Message(NO, {"why": "out of memory"})
        except OSError as error:
            what = f"{error.strerror or error}"
            self._tell(what)
            return Message(NO, {"why": what})
        except Exception as error:
            # Also a bug: whoever could start the process again is far, so that it stays for the next round.
            said = from_error(error)
            what = str(error) if isinstance(error, EdgetuneError) else said.head["what"]
            self._tell(shortened(what, LONGEST))
            return said

    def _open(self, message: Message) -> Message:
        """Begin, or be barred: whoever cannot begin ends with what it was, and can be started again."""
        try:
            return self._opened(message)
        except EdgetuneError as error:
            self.barred = error
        except OSError as error:
            self.barred = unwritable(error, self._own.scratch)
        except MemoryError:
            self.barred = LimitError("there is not the memory for the models")
        return from_error(self.barred)

    def _opened(self, message: Message) -> Message:
        own = self._own
        recipe = recipe_told(message, model=own.model, method=own.method, teacher=own.teacher, data=own.data)
        if recipe != self._recipe or self._backbone is None or self._worker is None:
            self._begin(message, recipe)
        else:
            check_base(message, self._backbone, recipe)
            check_lesson(message, recipe, self._worker.lesson)
        head = {
            "examples": len(self._examples),
            "threads": torch.get_num_threads(),
            "memory": resident_bytes(),
        }
        return Message(OPENED, head)

    def _begin(self, opening: Message, recipe: Recipe) -> None:
        """Load the base, if it is not there yet, and encode the records."""
        self._recipe, self._device, self._last = None, None, None
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self._own.limits.apply()
        source, dtype = recipe.model.source, DTYPES[recipe.model.dtype]
        residency = RESIDENCIES[recipe.model.residency]
        if self._worker is not None or self._backbone is None:  # tuned in place, or never loaded
            self._worker, self._backbone = None, None
            self._backbone = load_backbone(
                source, dtype=dtype, device=find_device(recipe.model.device), matrices=not residency.streamed
            )
        check_base(opening, self._backbone, recipe)
        self._examples = examples_of_file(recipe, self._backbone, self._own.data, self._own.columns)
        lesson = own_lesson(opening, recipe, self._backbone, self._own.limits)
        check_taught(lesson, self._examples)
        self._own.scratch.mkdir(parents=True, exist_ok=True)
        self._worker = Worker(
            self._backbone, recipe_method(recipe), recipe.seed, residency,
            scratch=self._own.scratch, start=Start(awaited=True), lesson=lesson,
        )  # fmt: skip
        self._recipe = recipe
        self._tell(f"{len(self._examples):,} records, {recipe.method.name} on {Path(source).name}")
        if lesson is not None:
            self._tell(taught_by(recipe, lesson))
        elif self._own.teacher is not None:
            self._tell("nobody teaches in this run: --teacher is not used")

    def _answer(self, message: Message) -> Message:
        task, start, recalled = _asked(message)
        device = self._named(task.device, start)
        if recalled:
            device.receive(task.payload[:recalled])
        task = replace(task, payload=task.payload[recalled:])
        key = (device.named(task.payload), task.device, task.survey, task.choice)
        if self._last is not None and self._last[0] == key:
            return Message(REPLY, {"again": True}, self._last[1])
        if not device.holds(task.payload):
            return Message(RECALL)
        why = self._own.limits.refusal(self._needed)
        if why is not None:
            self._tell(f"not now: {why}")
            return Message(NO, {"why": why})
        before = resident_bytes()
        with PeakMemory() as memory, self._own.limits.watch(self._progress) as progress:
            reply = task.done_by(device, progress)
        self._needed = max(0, memory.peak_bytes - before)
        self._last = (key, reply)
        round = shortened(str(message.head.get("round")), 10)
        self._tell(f"round {round}: {len(task.payload):,} bytes down, {len(reply):,} up")
        return Message(REPLY, {"peak": memory.peak_bytes}, reply)

    def _named(self, number: int, start: str) -> Device:
        """Return this device under the number that the server gives it, in a run that began at `start`."""
        worker, backbone = self._worker, self._backbone
        if worker is None or backbone is None:
            raise DigestError("this device has not been told of the run")
        if self._device is None or self._device.id != number or worker.start != start:
            worker.start = start
            worker.states.clear()
            self._device = Device(number, self._examples, worker, pad_id=padding_id(backbone.tokenizer))
        return self._device

    def _end(self, message: Message) -> Message:
        self.over = True
        return Message(BYE)


def _asked(message: Message) -> tuple[Task, str, int]:
    """Return what is to be done, the digest of the run's start, and how many bytes recall a state.

    Raises:
        DigestError: if the head is none of a server's.
    """
    try:
        task, start = task_of(message), message.head.get("start", "")
        recalled = int(message.head.get("recalled", 0))
        sound = isinstance(start, str) and 0 <= recalled <= len(task.payload)
        if not sound or not 0 <= task.device < 2**32 or not 0 <= task.turn < 2**32:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DigestError("the head of the message is damaged") from error
    return task, start, recalled
