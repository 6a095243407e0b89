"""What the stages of a run share: what they work on, where results go, and how the log is told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.core.errors import DataError, ModelError
from edgetune.core.event_log import read_events
from edgetune.core.events import (
    Event,
    Listener,
    RunStarted,
    Sample,
    StageFinished,
    Stopped,
)
from edgetune.core.progress import Progress
from edgetune.directions.kernel import describe_kernel
from edgetune.export.plan import ExportPlan
from edgetune.federation.course import Course
from edgetune.federation.hands import Party
from edgetune.measure.divergence import Reference
from edgetune.measure.memory import PeakMemory
from edgetune.measure.versions import versions
from edgetune.models.backbone import Backbone
from edgetune.models.licence import licence_of
from edgetune.recipe.allotting import Allotment, allot
from edgetune.recipe.preflight import plan_for
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.quality import Quality, model_quality, reference_of
from edgetune.run.earlier import measured_before
from edgetune.run.names import EVENTS as EVENTS
from edgetune.run.names import LEDGER as LEDGER
from edgetune.run.names import MANIFEST as MANIFEST
from edgetune.run.names import MODEL as MODEL


class Work:
    """A run in progress.

    Args:
        prepared: model, data, method.
        out: folder of the results.
        tell: told of every event.
        progress: told how far long work is.
        crew: who lets devices answer.
        single: one device holds all data.
        done: rounds that an earlier run completed.
        plan: the file that a stage is going to write; None if none does.
        replan: makes that plan of a model of another shape.
        dense: the base of which `prepared` has a pruned copy, until a stage has told of it; None for any other run.
        earlier: seconds that this took.
    """

    def __init__(
        self,
        prepared: Prepared,
        out: Path,
        tell: Listener,
        progress: Progress,
        crew: Party,
        *,
        single: bool,
        done: int,
        plan: ExportPlan | None,
        replan: Callable[[Prepared], ExportPlan | None] = lambda _: None,
        dense: Backbone | None = None,
        earlier: float = 0.0,
    ) -> None:
        self.prepared, self.out, self.tell, self.progress = prepared, out, tell, progress
        self.crew, self.single, self.done, self.plan = crew, single, done, plan
        self._replan, self.dense, self.earlier = replan, dense, earlier
        self.base_loss = math.nan
        self._reference: Reference | None = None
        self._allotment: Allotment | None = None

    @property
    def base(self) -> Backbone:
        """The base as the recipe names it, while that is still at hand."""
        return self.dense or self.prepared.backbone

    def reshape(self, model: PreTrainedModel) -> None:
        """Go on with a model of another shape: what is planned and measured from now on is of that."""
        self.prepared = replace(self.prepared, backbone=replace(self.prepared.backbone, model=model))
        if self.plan is not None:
            self.plan = self._replan(self.prepared)

    @property
    def model_path(self) -> Path:
        """Where the model file goes."""
        return self.out / MODEL

    def planned(self) -> ExportPlan:
        """Return the plan of the model file.

        Raises:
            ModelError: if the stage that asks did not say that it writes one.
        """
        if self.plan is None:
            raise ModelError("no file was planned", where=self.model_path)
        return self.plan

    def allotment(self, model: PreTrainedModel, method: CompressionMethod) -> Allotment:
        """Return the grids with which the file keeps to the recipe's size, for the model that is first asked about."""
        if self._allotment is None:
            self._allotment = allot(model, method, self.prepared, self.planned(), self.progress)
            if self._allotment.event is not None:
                self.tell(self._allotment.event)
                self.plan = plan_for(self.prepared, method, self._allotment.grids)
        return self._allotment

    def reference(self, model: PreTrainedModel) -> Reference:
        """Return the predictions that compressed models are compared with: of the model that is first asked about.

        Cost: that of `measure.divergence.Reference`; it is kept to the end of the run.
        """
        if self._reference is None:
            self._reference = reference_of(model, self.prepared)
        return self._reference

    def announce(self, command: str) -> None:
        """Write the manifest and the first events."""
        prepared = self.prepared
        prepared.manifest.write(self.out / MANIFEST)
        self.tell(
            RunStarted(
                command=command,
                config=prepared.recipe.model_dump(),
                method=prepared.method.name,
                base_digest=prepared.backbone.digest,
                seed=prepared.recipe.seed,
                versions={**versions(), "kernel": describe_kernel()},
                weights=sum(weight.numel() for weight in prepared.backbone.model.parameters()),
                device=prepared.backbone.model.device.type,
                threads=torch.get_num_threads(),
                licence=licence_of(self.base.folder),
            )
        )
        self.tell(prepared.found)

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds in the log; of a round that was done twice, the later one."""
        events = read_events(self.out / EVENTS)
        return list({one["round"]: one for one in events if one["event"] == "round"}.values())

    def course(self) -> Course:
        """Return how the held-out loss went so far, and whether the run was stopped, as the log says."""
        losses = {one["round"]: one["loss"] for one in self.rounds() if one.get("loss") is not None}
        stops = [one for one in read_events(self.out / EVENTS) if one["event"] == Stopped.kind]
        try:
            said = {field.name: stops[-1][field.name] for field in fields(Stopped)} if stops else None
        except KeyError as error:
            raise DataError(f"an event lacks {error}", where=self.out / EVENTS) from error
        return Course(self.base_loss, losses, Stopped(**said) if said else None)

    def measured(
        self,
        name: str,
        make: Callable[[], PreTrainedModel],
        size: Callable[[], int],
        *,
        earlier: float = 0.0,
        peak: Callable[[], int] = lambda: 0,
        beside: Reference | None = None,
    ) -> tuple[PreTrainedModel, Quality]:
        """Make a model, measure it on the held-out records, and send its row.

        Args:
            name: of the row.
            make: does the stage's work.
            size: bytes of the result, asked for afterwards.
            earlier: seconds that went into it before a kill.
            peak: bytes that the work needed with other processes beside this one.
            beside: what its predictions are compared with.
        """
        start = time.perf_counter()
        with PeakMemory() as memory:
            model = make()
            quality = model_quality(model, self.prepared, self.progress, name, beside)
        most = max(memory.peak_bytes, peak())
        self.row(name, quality, size(), most, earlier + time.perf_counter() - start)
        return model, quality

    def told_again(self, name: str) -> float | None:
        """Send a row that an earlier start of this run measured, with its answers; returns its loss.

        None if there is none: whoever asks measures. Only where a round was completed is it known that the data are
        the same.
        """
        found = measured_before(self.out / EVENTS, name) if self.done else None
        if found is None:
            return None
        row, answers = found
        for event in (row, *answers):
            self.tell(event)
        return row.loss

    def row(self, name: str, quality: Quality, size: int, peak: int, seconds: float) -> None:
        """Send a row of the final table, and some answers."""
        far = quality.divergence
        self.tell(
            StageFinished(
                name=name,
                loss=quality.loss,
                perplexity=quality.perplexity,
                rouge_l=quality.rouge_l,
                size_bytes=size,
                peak_memory_bytes=peak,
                seconds=seconds,
                base_style_loss=quality.base_style_loss,
                records=len(self.prepared.held_out),
                metric=self.prepared.scoring.name if self.prepared.scoring else None,
                score=quality.score,
                kl_response=far.response if far else None,
                kl=far.every if far else None,
                kl_rare=far.rare if far else None,
                top_1=far.top_1 if far else None,
            )
        )
        show_samples(name, quality, self.prepared, self.tell)

    def with_bar(self, what: str, total: int) -> Listener:
        """Return a listener that also moves a bar at every event."""
        done = 0

        def listen(event: Event) -> None:
            nonlocal done
            self.tell(event)
            done += 1
            self.progress(what, min(done, total), total)

        return listen


def show_samples(stage: str, quality: Quality, prepared: Prepared, listener: Listener) -> None:
    """Send the answers to the first few held-out prompts, one of each category first."""
    seen: dict[str, int] = {}
    for index in prepared.asked:
        seen.setdefault(prepared.held_out[index].category, index)
    order = list(seen.values()) + [index for index in prepared.asked if index not in seen.values()]
    answers = prepared.answers(quality.answers)
    for index in order[: prepared.recipe.evaluation.samples]:
        record = prepared.held_out[index]
        prompt = record.asked
        listener(Sample(stage, prompt, record.response, answers[index]))
