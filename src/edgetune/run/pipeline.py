"""The main job: tune across devices, compress in one shot, deploy, and measure every stage on the same records."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.compress.sequential import compress_model
from edgetune.core.errors import EdgetuneError
from edgetune.core.events import (
    EventLog,
    Failed,
    Listener,
    RunFinished,
    RunStarted,
    StageFinished,
    read_events,
)
from edgetune.core.files import writable_folder
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.core.quantised import GRIDS, QuantisedMatrix
from edgetune.data.encode import batches
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.verify import verify
from edgetune.measure.memory import PeakMemory
from edgetune.measure.versions import versions
from edgetune.methods.catalogue import compression_method
from edgetune.run.prepare import Prepared, prepare
from edgetune.run.recipe import Recipe
from edgetune.run.rows import Quality, file_quality, model_quality, show_samples
from edgetune.run.traffic import alternatives, traffic
from edgetune.run.tuning import tune_prepared

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
    log = EventLog(writable_folder(out) / EVENTS)

    def tell(event: Any) -> None:
        log(event)
        listener(event)

    start = time.perf_counter()
    try:
        return _Run(prepare(recipe), out, tell, progress).all(command, start)
    except EdgetuneError as error:
        tell(Failed(str(error), error.exit_code))
        raise


class _Run:
    """The stages in order, each a method; what they share is here."""

    def __init__(self, prepared: Prepared, out: Path, listener: Listener, progress: Progress) -> None:
        self.prepared, self.out, self.tell, self.progress = prepared, out, listener, progress
        self.model: PreTrainedModel = prepared.backbone.model
        self.base_bytes = prepared.backbone.size_bytes

    def all(self, command: str, start: float) -> Path:
        prepared = self.prepared
        prepared.manifest.write(self.out / MANIFEST)
        self._announce(command)
        self._stage("base", lambda: self.base_bytes, lambda: None)
        others = alternatives(prepared.backbone)
        ledger = self._tune()
        rounds = {one["round"]: one for one in read_events(self.out / EVENTS) if one["event"] == "round"}
        self.tell(traffic(list(rounds.values()), others))
        path = self._compress(ledger)
        self.tell(RunFinished(time.perf_counter() - start))
        return path

    def _announce(self, command: str) -> None:
        backbone, recipe = self.prepared.backbone, self.prepared.recipe
        self.tell(
            RunStarted(
                command=command,
                config=recipe.model_dump(),
                method=self.prepared.method.name,
                base_digest=backbone.digest,
                seed=recipe.seed,
                versions=versions(),
                weights=sum(weight.numel() for weight in self.model.parameters()),
            )
        )

    def _stage(self, name: str, size: Callable[[], int], work: Callable[[], object]) -> Quality:
        """Do a stage's work, measure its model, and send its row."""
        start = time.perf_counter()
        with PeakMemory() as memory:
            work()
            quality = model_quality(self.model, self.prepared, self.progress, name)
        self._row(name, quality, size(), memory.peak_bytes, time.perf_counter() - start)
        return quality

    def _row(self, name: str, quality: Quality, size: int, peak: int, seconds: float) -> None:
        self.tell(
            StageFinished(
                name,
                quality.loss,
                quality.perplexity,
                quality.rouge_l,
                size,
                peak,
                seconds,
                quality.base_style_loss,
            )
        )
        show_samples(name, quality, self.prepared, self.tell)

    def _tune(self) -> Ledger:
        ledgers: list[Ledger] = []

        def work() -> None:
            ledger, model = tune_prepared(
                self.prepared, self.out / LEDGER, listener=self.tell, progress=self.progress
            )
            ledgers.append(ledger)
            self.model = model

        path = self.out / LEDGER
        self._stage("tuned", lambda: self.base_bytes + path.stat().st_size, work)
        return ledgers[0]

    def _compress(self, ledger: Ledger) -> Path:
        prepared, recipe, path = self.prepared, self.prepared.recipe, self.out / MODEL
        weights = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        method = replace(compression_method(recipe.compression.name), grid=GRIDS[recipe.compression.grid])
        baseline = replace(compression_method("rtn"), grid=method.grid)
        calibration = list(
            batches(prepared.calibration_examples, recipe.evaluation.batch_size, prepared.pad_id)
        )
        packed: dict[str, QuantisedMatrix] = {}

        def write() -> None:
            metadata = {
                "base_digest": prepared.backbone.digest,
                "ledger_digest": ledger.digest,
                "method": prepared.method.name,
                "compression": f"{method.name} {method.grid.name}",
            }
            write_gguf(path, self.model, prepared.backbone.tokenizer, quantised=packed, metadata=metadata)

        def size() -> int:
            return path.stat().st_size

        def compress(chosen: Any, listener: Listener) -> Callable[[], None]:
            def work() -> None:
                packed.clear()
                packed.update(compress_model(self.model, calibration, chosen, listener))
                write()

            return work

        if method.name != baseline.name:
            self._stage("rounded", size, compress(baseline, lambda event: None))
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    weight.copy_(weights[name])
        self._stage("compressed", size, compress(method, self.tell))
        self._deploy(path)
        return path

    def _deploy(self, path: Path) -> None:
        prepared = self.prepared
        start = time.perf_counter()
        with PeakMemory() as memory:
            texts = [
                f"{record.instruction}\n{record.context}\n{record.response}"
                for record in prepared.calibration
            ]
            examples = [(one.input_ids, one.response_start) for one in prepared.calibration_examples]
            self.tell(verify(path, self.model, prepared.backbone.tokenizer, examples, texts))
            with LlamaCpp(path, threads=prepared.recipe.threads) as engine:
                quality = file_quality(engine, prepared, self.progress)
        self._row("llama.cpp", quality, path.stat().st_size, memory.peak_bytes, time.perf_counter() - start)
