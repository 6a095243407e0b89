"""The main job: tune across devices, compress in one shot, deploy, and measure every stage on the same records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.core.errors import INTERRUPTED, ConfigError, DivergenceError, EdgetuneError, ModelError
from edgetune.core.events import (
    Event,
    EventLog,
    Failed,
    Listener,
    RunFinished,
    RunStarted,
    StageFinished,
    ignore,
    read_events,
)
from edgetune.core.files import owned_folder
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.core.update import Projected
from edgetune.directions.kernel import describe_kernel
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.plan import ExportPlan
from edgetune.measure.memory import PeakMemory
from edgetune.measure.versions import versions
from edgetune.methods.catalogue import compression_method, tuning_method
from edgetune.run.arithmetic import refuse_other_arithmetic
from edgetune.run.crew import Crew
from edgetune.run.deploy import compress_to_file, deploy, file_quality, scratch_file, verify_file
from edgetune.run.precision import check_precision, check_reads
from edgetune.run.preflight import compression_of, look_ahead, needed_context
from edgetune.run.prepare import Prepared, prepare
from edgetune.run.recipe import Recipe
from edgetune.run.rows import Quality, model_quality, show_samples
from edgetune.run.traffic import alternatives, traffic
from edgetune.run.tuning import completed_rounds, tune_prepared
from edgetune.run.workers import open_crew
from edgetune.tune import Prefix

LEDGER, MODEL, EVENTS, MANIFEST = "tuned.ledger", "model.gguf", "events.jsonl", "manifest.json"


def run(recipe: Recipe, out: Path, *, command: str, listener: Listener, progress: Progress = silent) -> Path:
    """Run a whole recipe; a killed run with the same recipe and folder goes on after its last round.

    Args:
        recipe: everything about the run.
        out: folder of the results: events.jsonl, manifest.json, tuned.ledger, model.gguf.
        command: the exact command, for the report.
        listener: told of every event besides the log.
        progress: told how far long work is.

    Returns:
        The GGUF file.

    Raises:
        EdgetuneError: of any stage; it is also the last event of the log.
    """
    if isinstance(tuning_method(recipe.method.name).target, Prefix):
        raise ConfigError(
            "a trained prefix cannot be merged into a model file", hint=f"edgetune tune {recipe.method.name}"
        )
    with _logged(recipe, out, command, listener, progress, single=False, file=True) as work:
        work.base()
        return work.compress(work.tune())


def tune_only(
    recipe: Recipe,
    out: Path,
    *,
    command: str,
    single: bool,
    listener: Listener,
    progress: Progress = silent,
) -> Ledger:
    """Tune, on one device or across devices, and measure before and after; resumes like `run`.

    Args:
        recipe: everything about the run; its compression section is not used.
        out: folder of the results: events.jsonl, manifest.json, tuned.ledger.
        command: the exact command, for the report.
        single: one device holds all data.
        listener: told of every event besides the log.
        progress: told how far long work is.

    Raises:
        EdgetuneError: of any stage; it is also the last event of the log.
    """
    with _logged(recipe, out, command, listener, progress, single=single, file=False) as work:
        work.base()
        return work.tune()


@contextmanager
def _logged(
    recipe: Recipe,
    out: Path,
    command: str,
    listener: Listener,
    progress: Progress,
    *,
    single: bool,
    file: bool,
) -> Iterator[_Run]:
    """Open the log, announce the run, and close the log with its end or its error.

    What is refused before the run starts (settings, data, model, another run's folder) leaves an older log untouched.
    """
    with owned_folder(out):
        compression = compression_of(recipe)
        prepared = prepare(recipe)
        plan, planned = look_ahead(prepared, out / MODEL, compression, file=file)
        precision = check_precision(
            prepared.backbone, prepared.method, recipe.seed, accept=recipe.model.accept_rounding
        )
        check_reads(prepared.backbone, prepared.method)
        done = completed_rounds(prepared, out / LEDGER, single=single)
        if done:
            refuse_other_arithmetic(out / EVENTS)
        log = EventLog(out / EVENTS)

        def tell(event: Event) -> None:
            log(event)
            listener(event)

        start = time.perf_counter()
        rounds = 0 if single else recipe.federation.rounds - done
        crew = open_crew(prepared, rounds=rounds, scratch=out, progress=progress, listener=tell)
        try:
            work = _Run(prepared, out, tell, progress, crew, single=single, done=done, plan=plan)
            work.announce(command)
            for found in (planned, precision):
                if found is not None:
                    tell(found)
            with crew:
                yield work
            tell(RunFinished(time.perf_counter() - start))
        except EdgetuneError as error:
            tell(Failed(str(error), error.exit_code))
            raise
        except KeyboardInterrupt as stop:
            tell(Failed("interrupted", getattr(stop, "exit_code", INTERRUPTED)))
            raise


class _Run:
    """The stages, each a method; what they share is here."""

    def __init__(
        self,
        prepared: Prepared,
        out: Path,
        listener: Listener,
        progress: Progress,
        crew: Crew,
        *,
        single: bool,
        done: int,
        plan: ExportPlan | None,
    ) -> None:
        self.plan = plan
        self.prepared, self.out, self.tell, self.progress = prepared, out, listener, progress
        self.crew = crew
        self.single, self.done = single, done
        self.model: PreTrainedModel = prepared.backbone.model
        self.base_loss = math.nan

    def announce(self, command: str) -> None:
        """Write the manifest and the first event."""
        self.prepared.manifest.write(self.out / MANIFEST)
        self.tell(
            RunStarted(
                command=command,
                config=self.prepared.recipe.model_dump(),
                method=self.prepared.method.name,
                base_digest=self.prepared.backbone.digest,
                seed=self.prepared.recipe.seed,
                versions={**versions(), "kernel": describe_kernel()},
                weights=sum(weight.numel() for weight in self.model.parameters()),
            )
        )
        self.tell(self.prepared.found)

    def base(self) -> None:
        """Measure the base model."""
        quality = self._stage("base", lambda: self.prepared.backbone.size_bytes, lambda: None)
        self.base_loss = quality.loss

    def tune(self) -> Ledger:
        """Tune, measure, and sum up what was sent.

        Raises:
            DivergenceError: if the tuned model is no better than chance, or no step changed anything.
        """
        others = {} if self.single else alternatives(self.prepared.backbone)
        path, ledgers = self.out / LEDGER, list[Ledger]()
        earlier = sum(one["seconds"] for one in self._rounds().values() if one["round"] <= self.done)

        def work() -> None:
            ledger, self.model = tune_prepared(
                self.prepared, path,
                listener=self.tell, progress=self.progress, single=self.single, crew=self.crew,
            )  # fmt: skip
            self.crew.close()
            ledgers.append(ledger)

        def of_all_processes() -> int:
            rounds = self._rounds().values()
            return max((one["peak_memory_bytes"] for one in rounds if one["round"] > self.done), default=0)

        quality = self._stage(
            "tuned",
            lambda: self.prepared.backbone.size_bytes + path.stat().st_size,
            work,
            earlier,
            of_all_processes,
        )
        if not self.single:
            self.tell(traffic(list(self._rounds().values()), others))
        self._refuse_useless(ledgers[0], quality.loss)
        return ledgers[0]

    def _refuse_useless(self, ledger: Ledger, loss: float) -> None:
        chance = math.log(self.model.config.vocab_size)
        hint = "lower the learning rate (--lr) or the perturbation (--set method.eps=...)"
        if not loss < chance and self.base_loss < chance:
            raise DivergenceError(
                f"the tuned model is no better than chance: held-out loss {loss:.3f}", hint=hint
            )
        update = ledger.update
        if (
            isinstance(update, Projected)
            and not update.coefficients.any()
            and self.prepared.method.local.lr > 0
        ):
            raise DivergenceError(
                "no step changed anything: every slope was zero", hint="raise --set method.eps=..."
            )

    def _rounds(self) -> dict[int, dict[str, Any]]:
        """Return the rounds in the log; of a round that was done twice, the later one."""
        path = self.out / EVENTS
        return {one["round"]: one for one in read_events(path) if one["event"] == "round"}

    def compress(self, ledger: Ledger) -> Path:
        """Compress beside the rounding baseline, write the planned file, and check it in llama.cpp."""
        method, path, plan = compression_of(self.prepared.recipe), self.out / MODEL, self.plan
        if plan is None:
            raise ModelError("no file was planned", where=path)
        weights = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        baseline = replace(compression_method("rtn"), grid=method.grid)

        def stage(name: str, chosen: CompressionMethod, file: Path, listener: Listener) -> None:
            def work() -> None:
                compress_to_file(
                    self.model,
                    chosen,
                    file,
                    self.prepared,
                    plan,
                    ledger_digest=ledger.digest,
                    listener=listener,
                )

            self._stage(name, lambda: file.stat().st_size, work)

        if method.name != baseline.name:
            with scratch_file(path) as file:
                stage("rounded", baseline, file, ignore)
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    weight.copy_(weights[name])
        matrices = sum(weight.ndim == 2 for weight in weights.values())
        checked = deploy(
            path,
            lambda file: stage("compressed", method, file, self._with_bar("matrices", matrices)),
            lambda file: verify_file(file, self.model, self.prepared, plan),
        )
        self.tell(checked)
        self._measure(path)
        return path

    def _measure(self, path: Path) -> None:
        start, context = time.perf_counter(), needed_context(self.prepared)
        with LlamaCpp(path, threads=torch.get_num_threads(), context=context) as engine:
            quality = file_quality(engine, self.prepared, self.progress)
            peak = engine.peak_memory_bytes
        self._row("llama.cpp", quality, path.stat().st_size, peak, time.perf_counter() - start)

    def _stage(
        self,
        name: str,
        size: Callable[[], int],
        work: Callable[[], object],
        earlier: float = 0.0,
        peak: Callable[[], int] = lambda: 0,
    ) -> Quality:
        """Do a stage's work, measure its model, and send its row.

        `earlier` seconds went into it before a kill; `peak` is what it needed with other processes beside this one.
        """
        start = time.perf_counter()
        with PeakMemory() as memory:
            work()
            quality = model_quality(self.model, self.prepared, self.progress, name)
        most = max(memory.peak_bytes, peak())
        self._row(name, quality, size(), most, earlier + time.perf_counter() - start)
        return quality

    def _row(self, name: str, quality: Quality, size: int, peak: int, seconds: float) -> None:
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
            )
        )
        show_samples(name, quality, self.prepared, self.tell)

    def _with_bar(self, what: str, total: int) -> Listener:
        """Return a listener that also moves a bar at every event."""
        done = 0

        def listen(event: Event) -> None:
            nonlocal done
            self.tell(event)
            done += 1
            self.progress(what, min(done, total), total)

        return listen
