"""What a run came to, computed from its events alone, and `summary.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

from edgetune.core.compression_events import Allotted, Calibrated, Pruned
from edgetune.core.event_log import read_events
from edgetune.core.events import (
    DataPrepared,
    Event,
    Failed,
    LayerCompressed,
    Precision,
    Privacy,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    Sample,
    StageFinished,
    Traffic,
)
from edgetune.core.export_events import ExportPlanned, Verified
from edgetune.core.files import write_text_atomic
from edgetune.report.hosts import Hosts, hosts_json, hosts_of
from edgetune.report.log import newest_run, typed
from edgetune.report.rounds import by_round, counted, elapsed
from edgetune.report.units import finite

Status = Literal["finished", "failed", "unfinished"]
E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run as it stands: what was measured last of each kind."""

    status: Status
    """`unfinished` when the log has no closing line: still going, or killed."""
    failure: Failed | None
    start: RunStarted | None
    """None if the log does not begin with the start of a run."""
    resumed: int
    """How often the run was taken up again."""
    rounds: tuple[RoundFinished, ...]
    """By number; a round done again after a resume counts once, as done last."""
    stages: tuple[StageFinished, ...]
    """In the order in which they were first measured."""
    samples: tuple[Sample, ...]
    layers: tuple[LayerCompressed, ...]
    traffic: Traffic
    verified: Verified | None
    seconds: float
    """Wall time from the first to the last line, without the pauses between attempts."""
    last_time: float
    """When the last line was written, unix seconds."""
    precision: Precision | None = None
    """What the weights' type leaves of a perturbation; None if nothing is perturbed."""
    data: DataPrepared | None = None
    """What became of the records; None in logs of older versions."""
    planned: ExportPlanned | None = None
    """What the file was planned to be; None if no file was wanted."""
    privacy: Privacy | None = None
    """What the run spends of privacy; None if its method hides nobody."""
    hosts: Hosts | None = None
    """What the devices of other hosts did; None for a run in one process."""
    calibration: Calibrated | None = None
    """What the compression was calibrated on; None if nothing was compressed."""
    allotted: Allotted | None = None
    """How the file is kept to its size; None if its recipe does not bound it."""
    pruned: Pruned | None = None

    @property
    def method(self) -> str | None:
        """Name of the tuning method."""
        return self.start.method if self.start else None

    @property
    def command(self) -> str:
        """Name of the command that made the run; `run` where the log does not say."""
        said = re.match(r"edgetune ([a-z]+)\b", self.start.command) if self.start else None
        return said[1] if said else "run"

    @property
    def tuned_from(self) -> StageFinished | None:
        """The row of the model that tuning began with: of the pruned one where that was the base."""
        first = self.pruned is not None and bool(self.pruned.base_digest)
        return self.stage("pruned" if first else "base")

    def stage(self, name: str) -> StageFinished | None:
        """Return the row of one stage, or None if it was not measured."""
        return next((stage for stage in self.stages if stage.name == name), None)


def read_summary(folder: Path) -> Summary:
    """Summarise the run in a folder.

    Args:
        folder: where `edgetune run --out` wrote `events.jsonl`.

    Returns:
        The run as it stands, complete or not.

    Raises:
        DataError: if there is no readable event log.
    """
    path = folder / "events.jsonl"
    return summarise(read_events(path), path)


def summarise(events: Iterable[dict[str, Any]], where: Path | None = None) -> Summary:
    """Reduce an event log to what counts.

    Args:
        events: lines of the log in order; a run may be still going, killed, resumed, failed or only tuned.
        where: the log's file, for errors.

    Returns:
        The newest run of the log; whatever was measured twice counts as measured last.

    Raises:
        DataError: if a line is damaged.
    """
    lines = newest_run(typed(events, where))
    log = [line.event for line in lines]
    rounds = by_round(RoundFinished, log)
    turns = [event for event in log if isinstance(event, (RunStarted, RunResumed, Failed, RunFinished))]
    last = turns[-1] if turns else None
    traffic = _of(Traffic, log)
    return Summary(
        status=_status(last),
        failure=last if isinstance(last, Failed) else None,
        start=next(iter(reversed(_of(RunStarted, log))), None),
        resumed=len(_of(RunResumed, log)),
        rounds=rounds,
        stages=tuple({stage.name: stage for stage in _of(StageFinished, log)}.values()),
        samples=tuple({(sample.prompt, sample.stage): sample for sample in _of(Sample, log)}.values()),
        layers=tuple({layer.name: layer for layer in _of(LayerCompressed, log)}.values()),
        traffic=traffic[-1] if traffic else counted(rounds),
        verified=next(iter(reversed(_of(Verified, log))), None),
        seconds=elapsed(lines),
        last_time=lines[-1].time if lines else 0.0,
        precision=next(iter(reversed(_of(Precision, log))), None),
        data=next(iter(reversed(_of(DataPrepared, log))), None),
        planned=next(iter(reversed(_of(ExportPlanned, log))), None),
        privacy=next(iter(reversed(_of(Privacy, log))), None),
        hosts=hosts_of(log, rounds),
        calibration=next(iter(reversed(_of(Calibrated, log))), None),
        allotted=next(iter(reversed(_of(Allotted, log))), None),
        pruned=next(iter(reversed(_of(Pruned, log))), None),
    )


def to_json(summary: Summary) -> dict[str, Any]:
    """Return the content of `summary.json`; the keys are those that `write_summary` documents."""
    start = asdict(summary.start) if summary.start else {}
    content = {
        "stages": [{key: getattr(stage, key) for key in _STAGE_KEYS} for stage in summary.stages],
        "traffic": asdict(summary.traffic),
        **{key: start.get(key) for key in _RUN_KEYS},
        "status": summary.status,
        "failure": asdict(summary.failure) if summary.failure else None,
        "seconds": summary.seconds,
        "resumed": summary.resumed,
        "rounds": [_round_row(event) for event in summary.rounds],
        "base_style_loss": {
            stage.name: stage.base_style_loss for stage in summary.stages if stage.base_style_loss is not None
        },
        "layers": _layers(summary.layers),
        "verified": asdict(summary.verified) if summary.verified else None,
        "records": next((stage.records for stage in summary.stages if stage.records is not None), None),
        "precision": _precision(summary),
        "data": asdict(summary.data) if summary.data else None,
        "planned": asdict(summary.planned) if summary.planned else None,
        "privacy": asdict(summary.privacy) if summary.privacy else None,
        "hosts": hosts_json(summary.hosts),
        "calibration": asdict(summary.calibration) if summary.calibration else None,
        "allotted": asdict(summary.allotted) if summary.allotted else None,
        "pruned": asdict(summary.pruned) if summary.pruned else None,
    }
    plain: dict[str, Any] = finite(content)
    return plain


def write_summary(folder: Path) -> Path:
    """Write `summary.json` beside the event log, atomically; every key is always there, in this order.

    - `stages`: list of `name`, `loss` (nats a token), `perplexity`, `rouge_l` (F1, 0 to 100), `metric` and
      `score` (0 to 100) or null, `size_bytes`, `peak_memory_bytes`, `seconds`, and null or, beside the predictions of
      the model before compression, `kl_response`, `kl` (means over the predictions of response tokens and over all
      tokens, nats), `kl_rare` (99.9 % quantile of the latter), `top_1` (share of tokens with the same likeliest next).
    - `traffic`: `rounds`, `devices_per_round`, `payload_up_bytes`, `payload_down_bytes` (largest of one
      device in one round), `total_bytes`, `alternatives` (name to the same two payloads).
    - `method`, `base_digest`, `seed`, `versions`, `weights`, `command`, `config`: as resolved, or null.
    - `status`: `finished`, `failed` or `unfinished`; `failure`: null, or `what` and `exit_code`.
    - `seconds` (wall, without the pauses between attempts), `resumed` (times taken up again).
    - `rounds`: list of `round`, `train_loss`, `loss`, `rouge_l`, `payload_up_bytes`, `payload_down_bytes`
      (sum over the devices), `dropped`, `seconds`, `peak_memory_bytes`, `digest`, `realised` (as `precision.update`),
      `aggregation_residual` (null, or the norm of what the mean of low-rank factors lacks),
      `layers` (device to the layers chosen for it, by depth from 0; empty where all train all), `staleness` (of each
      reply that counted, in server steps; empty without a buffer).
    - `base_style_loss`: stage to loss on the base's own kind of text; empty where it was not measured.
    - `layers`: `count`, `fallbacks`, `median_error`, `median_rounding_error`.
    - `verified`: null, or the fields of the check of the exported file.
    - `records`: held-out records behind the stages, or null.
    - `precision`: null, or `dtype`, `eps`, `perturbation` (realised ratio of the perturbation) and `update`
      (that of the whole update after the last round; null in float32).
    - `data`: null, or the fields of what became of the records (`core.events.DataPrepared`); `words` says what Rouge-L
      counts as a word.
    - `planned`: null, or the fields of what the file was planned to be (`core.export_events.ExportPlanned`).
    - `privacy`: null, or what a private method spends over all rounds (`core.events.Privacy`).
    - `hosts`: null for a run in one process, else `registered` (devices with a key; null before the first round),
      `rounds` (list of `round`, `online` at its close, `accepted` replies, `unanswered` (why to count), `late` replies
      to earlier rounds, the four sums of bytes below, `waited_seconds`), `unanswered` and `late` of all rounds,
      `turned_away` (why to count, of devices and strangers that were not let in), `payload_up_bytes`,
      `payload_down_bytes`, `transport_up_bytes`, `transport_down_bytes` (on the socket: payloads, requests, encryption,
      polls, retries; between the rounds that count, not before the first nor of rounds lost with a killed server), and
      `devices`: number to `answered` rounds, `unanswered`, `late` and the same four sums.
    - `calibration`: null, or `source`, `tokens`, `sequences` and `widest` (inputs of the widest layer).
    - `allotted`: null, or `size` as asked for, `budget_bytes`, `predicted_kl`, and `grids` (matrices on each).
    - `pruned`: null, or the fields of what was taken out of the model (`core.compression_events.Pruned`).

    A loss or perplexity that is NaN or infinite is written as null, because JSON has no such number.

    Args:
        folder: where `events.jsonl` is.

    Returns:
        Path of the file.

    Raises:
        DataError: if there is no readable event log.
        OutputError: if the file cannot be written.
    """
    path = folder / "summary.json"
    write_text_atomic(path, json.dumps(to_json(read_summary(folder)), indent=2, allow_nan=False) + "\n")
    return path


_STAGE_KEYS = (
    "name", "loss", "perplexity", "rouge_l", "metric", "score", "size_bytes", "peak_memory_bytes", "seconds",
    "kl_response", "kl", "kl_rare", "top_1",
)  # fmt: skip
_RUN_KEYS = ("method", "base_digest", "seed", "versions", "weights", "command", "config")


def _of(kind: type[E], log: list[Event]) -> list[E]:
    return [event for event in log if isinstance(event, kind)]


def _status(last: Event | None) -> Status:
    if isinstance(last, Failed):
        return "failed"
    return "finished" if isinstance(last, RunFinished) else "unfinished"


def _round_row(event: RoundFinished) -> dict[str, Any]:
    return {
        "round": event.round,
        "train_loss": event.train_loss,
        "loss": event.loss,
        "rouge_l": event.rouge_l,
        "payload_up_bytes": sum(event.payload_up_bytes),
        "payload_down_bytes": sum(event.payload_down_bytes),
        "dropped": event.dropped,
        "seconds": event.seconds,
        "peak_memory_bytes": event.peak_memory_bytes,
        "digest": event.digest,
        "realised": event.realised,
        "aggregation_residual": event.aggregation_residual,
        "layers": event.layers,
        "staleness": event.staleness,
    }


def _precision(summary: Summary) -> dict[str, Any] | None:
    if summary.precision is None:
        return None
    measured = [done.realised for done in summary.rounds if done.realised is not None]
    return {**asdict(summary.precision), "update": measured[-1] if measured else None}


def _layers(layers: tuple[LayerCompressed, ...]) -> dict[str, Any]:
    return {
        "count": len(layers),
        "fallbacks": sum(layer.fallback for layer in layers),
        "median_error": median(layer.error for layer in layers) if layers else None,
        "median_rounding_error": median(layer.rounding_error for layer in layers) if layers else None,
    }
