"""What a tuning run leaves on disk after every round, and how a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from edgetune.core.errors import DigestError, DivergenceError, ModelError
from edgetune.core.events import Listener, RoundFinished, RunResumed, Stopped
from edgetune.core.files import write_atomic
from edgetune.core.ledger import Ledger, read_ledger, write_ledger
from edgetune.core.tuned import Tuned
from edgetune.core.update import Update
from edgetune.federation.beside import BESIDE, FLIGHT, State, read_bound, read_state, write_state
from edgetune.federation.course import Course
from edgetune.federation.start import FILE, START
from edgetune.federation.worker import Worker
from edgetune.models.digest import tensor_digest
from edgetune.tune import parts_of

Evaluate = Callable[[Tuned], float]
"""One figure of the present weights: held-out loss, or Rouge-L."""
BEST = "best.ledger"
"""Beside a run's ledger while a round before the last is the best; gone when the run is complete."""


def check_resumable(ledger: Ledger, fingerprint: str, path: Path) -> None:
    """Refuse to go on with a ledger that was made with other settings.

    Raises:
        DigestError: naming the file.
    """
    if ledger.fingerprint != fingerprint:
        raise DigestError(
            "this folder holds a run with another configuration",
            where=path,
            hint="choose another --out, or delete the folder to start again",
        )


class Checkpoint:
    """The ledger of a run in progress, and beside it that of its best round while a later one is worse.

    Args:
        path: the `.ledger` file.
        worker: names method, base and directions.
        fingerprint: digest of everything that decides results; a file with another one is refused.
        course: watches the held-out loss; nothing is watched if not given.
    """

    def __init__(self, path: Path, worker: Worker, fingerprint: str, course: Course | None = None) -> None:
        self.path, self._fingerprint, self.course = path, fingerprint, course
        self._best, self._saved = path.with_name(BEST), 0
        self._blank = Ledger(
            base_digest=worker.backbone.digest,
            method=worker.method.name,
            update=worker.tuned.state(),
            directions=worker.directions,
            adapter=worker.tuned.adapter(),
            fingerprint=fingerprint,
            extra=worker.extra,
        )

    def resume(self, listener: Listener) -> Ledger:
        """Return the ledger of the last complete round, or an empty one.

        Raises:
            ModelError: if the file is damaged.
            DigestError: if it was made with another base or configuration.
        """
        if not self.path.exists():
            self._forget_best()
            return self._blank
        ledger = self._read(self.path)
        self._saved = ledger.round
        if self.course is not None:
            if self.course.stopped is not None and self.over:
                listener(self.course.stopped)
                return ledger
            best = self._best_ledger(ledger.round)
            self.course.resume(ledger.round, {ledger.round} | ({best.round} if best else set()))
        listener(RunResumed(ledger.round))
        return ledger

    @property
    def over(self) -> bool:
        """Whether the run was stopped at the round that the file holds: it would only climb again."""
        stopped = self.course.stopped if self.course is not None else None
        return stopped is not None and 0 < self._saved == stopped.best

    def ledger(self, update: Update, round: int, tuned: Tuned | None = None) -> Ledger:
        """Return the ledger after a round; with a handle, the digest of its weights as well."""
        digest = ""
        if tuned is not None and all(weight.dtype == torch.float32 for _, weight in parts_of(tuned)):
            digest = tensor_digest(parts_of(tuned))  # narrower weights are rounded from the ledger
        return replace(self._blank, update=update, round=round, weights_digest=digest)

    def memory(self, ledger: Ledger, start: State, pool: int = 0) -> State:
        """Return what stood beside a ledger: the state of an optimiser or an aggregator.

        Args:
            ledger: of the last complete round.
            start: what stands there before the first; names, types, and shapes that do not grow.
            pool: K; 0 if there is no pool.

        Raises:
            ModelError: as `beside.read_state`.
        """
        if not start or not ledger.round:
            return start
        return read_state(self.path, ledger.round, ledger.extra.get(BESIDE), start, pool)

    def under_way(self, ledger: Ledger) -> State:
        """Return what was under way when a ledger was written; nothing before the first round.

        Raises:
            ModelError: as `beside.read_bound`.
        """
        return read_bound(self.path, ledger.round, ledger.extra.get(FLIGHT), FLIGHT) if ledger.round else {}

    def remember(self, ledger: Ledger, memory: State, what: str = BESIDE) -> Ledger:
        """Write what stands beside a ledger before the ledger itself, which names it by digest."""
        if not memory:
            return ledger
        digest = write_state(self.path, ledger.round, memory, what)
        return replace(ledger, extra={**ledger.extra, what: digest})

    def close(self, ledger: Ledger, done: RoundFinished, listener: Listener) -> None:
        """Tell of a round, then write its ledger atomically.

        Raises:
            DivergenceError: if the run climbs; the ledger is not written then, so that a run that is killed now comes
                here again.
        """
        listener(done)
        course = self.course
        if course is not None and done.loss is not None:
            course.take(done.round, done.loss)
            if course.climbs:
                raise DivergenceError(
                    f"the held-out loss climbs: {course.start:.4g} before the first step, {done.loss:.4g} after round "
                    f"{done.round}"
                )
        if course is not None and course.best_round == self._saved != 0:
            write_atomic(self._best, lambda file: file.write_bytes(self.path.read_bytes()))
        write_ledger(self.path, ledger)
        self._saved = done.round
        if course is not None and course.best_round == done.round:
            self._forget_best()

    def back(self, tuned: Tuned, listener: Listener, error: DivergenceError) -> Ledger:
        """Go back to the best round after a run diverged, and keep its ledger alone.

        Args:
            tuned: becomes the model of that round.
            listener: told of it.
            error: what happened.

        Raises:
            DivergenceError: the error, naming `edgetune suggest`, if no round is better than the base: no ledger is
                left then, and the same folder takes another attempt.
        """
        course, method = self.course, self._blank.method
        best = self._best_ledger(self._saved) or (self._read(self.path) if self._saved else None)
        if course is None or best is None or best.round != course.best_round:
            if course is not None:
                self._forget_best()
                self.path.unlink(missing_ok=True)
            raise DivergenceError(error.what, where=error.where, hint=_advice(method)) from error
        tuned.reset(best.update)
        listener(Stopped(best.round, course.best, self._saved + 1, course.last, error.what))
        ledger = self.ledger(tuned.state(), best.round, tuned)
        write_ledger(self.path, ledger)
        self._forget_best()
        return ledger

    def finish(self) -> None:
        """Keep the last round's ledger alone: the run is complete."""
        self._forget_best()

    def _read(self, path: Path) -> Ledger:
        ledger = read_ledger(path, base_digest=self._blank.base_digest)
        check_resumable(ledger, self._fingerprint, path)
        begun, here = (one.extra.get(START, "") for one in (ledger, self._blank))
        if begun != here:
            raise DigestError(
                f"this run began at other factors, {begun[:12] or 'the seed'}, not {here[:12] or 'the seed'}",
                where=path,
                hint=f"put {FILE} of that run beside it, or delete the folder to start again",
            )
        return ledger

    def _best_ledger(self, before: int) -> Ledger | None:
        """Return the ledger set aside, if it is of an earlier round of this run."""
        if self.course is None or not self._best.exists():
            return None
        try:
            best = self._read(self._best)
        except (DigestError, ModelError):
            return None  # a killed run's, or another's: the run goes on without it
        return best if best.round < before else None

    def _forget_best(self) -> None:
        self._best.unlink(missing_ok=True)


def _advice(method: str) -> str:
    return f"lower the learning rate: edgetune suggest {method} finds one for this model and data"
