"""Progress bars and lines on the terminal while a run goes on."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edgetune.cli.presence import Presence
from edgetune.core.compression_events import Allotted, Calibrated, Pruned
from edgetune.core.events import (
    DataPrepared,
    Event,
    Failed,
    Precision,
    Privacy,
    RateFound,
    RoundFinished,
    RunResumed,
    RunStarted,
    StageFinished,
    Stopped,
)
from edgetune.core.export_events import ExportPlanned, ExportRefused, Verified
from edgetune.core.host_events import DeviceSeen, HostsRound, WorkerLost
from edgetune.report import units
from edgetune.report.notes import (
    allotted_note,
    calibration_note,
    data_notes,
    export_notes,
    privacy_note,
    pruned_note,
    rate_note,
)


class _Counted(MofNCompleteColumn):
    """How many of how many, where that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """How long it will take, where that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class Display:
    """Bars for what is going on, one line for what is done; something moves from the first moment to the last.

    Args:
        console: where to print; bars appear only on a terminal.
        quiet: print neither.
        doing: what is going on while nothing says how far it is.
    """

    def __init__(self, console: Console, *, quiet: bool = False, doing: str = "loading") -> None:
        self._console, self._quiet = console, quiet
        self._bars = Progress(
            TextColumn("[bold]{task.description:<22}"),
            BarColumn(bar_width=32),
            _Counted(),
            TimeElapsedColumn(),
            _Left(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._idle = self._bars.add_task(doing, total=None)
        self._base_loss, self._method, self.stopped = math.inf, "METHOD", False
        self._dtype, self._warned = "half-precision", False
        self._presence = Presence()

    def __enter__(self) -> Display:
        """Start the bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars."""
        self.stop()

    def stop(self) -> None:
        """Remove the bars for good: what comes now is the terminal's."""
        self._bars.stop()

    def progress(self, what: str, done: float, total: int) -> None:
        """Move one bar; a full one disappears."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
        self._bars.update(self._idle, description="working", visible=not self._tasks)

    def listen(self, event: Event) -> None:
        """Print one line for an event that a person wants to see."""
        self._warn(event)
        line = self._line(event)
        if line is not None and not self._quiet:
            self._console.print(line, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say, even if quiet, what a person should know."""
        self._console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)

    def _warn(self, event: Event) -> None:
        """Say, even if quiet, what a person should know: slow directions, a worse model, steps that rounding hides."""
        if isinstance(event, RunStarted):
            self._method = event.method
        if isinstance(event, RunStarted) and event.versions.get("kernel") == "torch":
            self._console.print(
                "[yellow]warning:[/] no compiled kernel is in use, so steps take many times longer; "
                "install a C compiler and reinstall edgetune (edgetune doctor)",
                highlight=False,
            )
        if isinstance(event, ExportRefused):
            self._console.print(
                f"[yellow]warning:[/] the ledger cannot become a GGUF file: {escape(event.why)}",
                highlight=False,
            )
        if isinstance(event, Precision):
            self._dtype = event.dtype
        if isinstance(event, WorkerLost):
            doing = "" if event.device is None else f" while device {event.device} trained in it"
            self._console.print(
                f"[yellow]warning:[/] a worker process ended{doing} (code {event.code}); "
                "the run goes on without it, to the same result",
                highlight=False,
            )
        if isinstance(event, Stopped):
            self.stopped = True
            after = "no number" if math.isnan(event.loss) else f"{event.loss:.4f} after round {event.round}"
            self._console.print(
                f"[yellow]warning:[/] back to round {event.best}, the best, held-out loss {event.best_loss:.4f} "
                f"({after}); edgetune suggest {self._method} finds a lower learning rate",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
        if isinstance(event, RoundFinished) and not self._warned:
            self._warn_of_rounding(event)
        if not isinstance(event, StageFinished):
            return
        if event.name in ("base", "pruned"):
            self._base_loss = event.loss
        elif event.name == "tuned" and not event.loss < self._base_loss:
            self._console.print(
                f"[yellow]warning:[/] held-out loss rose from {self._base_loss:.4f} to {event.loss:.4f}; "
                f"edgetune suggest {self._method} finds a lower learning rate",
                highlight=False,
            )

    def _warn_of_rounding(self, event: RoundFinished) -> None:
        if event.realised is not None and event.realised < 0.5:
            self._warned = True
            self._console.print(
                f"[yellow]warning:[/] {self._dtype} weights show {100 * event.realised:.0f} % of the update so far "
                "(the ledger keeps all of it); raise --lr or use --set model.dtype=float32",
                highlight=False,
            )

    def _line(self, event: Event) -> str | None:
        if isinstance(event, RunStarted):
            return f"base {event.base_digest[:12]}, {event.weights:,} weights, method {event.method}, seed {event.seed}"
        if isinstance(event, DataPrepared):
            return "\n".join(map(escape, data_notes(event))) or None
        if isinstance(event, ExportPlanned):
            return "\n".join(map(escape, export_notes(event)))
        if isinstance(event, Calibrated):
            return ("[yellow]warning:[/] " if event.few else "") + escape(calibration_note(event))
        if isinstance(event, Pruned):
            return escape(pruned_note(event))
        if isinstance(event, Allotted):
            return escape(allotted_note(event))
        if isinstance(event, RateFound):
            return rate_note(event)
        if isinstance(event, Privacy):
            return privacy_note(event)
        if isinstance(event, RunResumed) and event.round:
            return f"resumed after round {event.round}"
        if isinstance(event, DeviceSeen):
            return self._presence.seen(event)
        if isinstance(event, HostsRound):
            return self._presence.closed(event)
        if isinstance(event, RoundFinished):
            up = f", {max(event.payload_up_bytes):,} B up" if event.payload_up_bytes else ""
            down = f", {max(event.payload_down_bytes):,} B down" if event.payload_down_bytes else ""
            loss = f"held-out loss {event.loss:.4f}, " if event.loss is not None else ""
            drop = f", [yellow]{event.dropped} steps dropped[/]" if event.dropped else ""
            out = f", [yellow]{len(event.refused)} replies refused[/]" if event.refused else ""
            away, hosts = sum(event.unanswered.values()), self._presence.of_round(event.round)
            out += hosts if hosts is not None else f", {away} did not answer in time" if away else ""
            stale = sum(age > 0 for age in event.staleness)
            out += f", {stale} of {len(event.staleness)} stale" if stale else ""
            out += f", {event.under_way} under way" if event.under_way else ""
            out += ", [yellow]too few replies: nothing changed[/]" if event.void else ""
            train = "train loss not told" if math.isnan(event.train_loss) else f"train {event.train_loss:.4f}"
            means = f"{loss}{train}"
            if event.aggregation_residual is not None:
                means += f", residual {event.aggregation_residual:.2g}"
            if event.layers:
                taken = sorted({layer for chosen in event.layers.values() for layer in chosen})
                means += f", layers {' '.join(map(str, taken))}"
            return f"round {event.round:>3}: {means}{up}{down}, {event.seconds:.1f} s{drop}{out}"
        if isinstance(event, StageFinished):
            shown = "" if math.isnan(event.loss) else f"loss {event.loss:.4f}, "
            shown += "" if math.isnan(event.rouge_l) else f"Rouge-L {event.rouge_l:.1f}, "
            shown += "" if event.score is None else f"{event.metric} {event.score:.1f}, "
            shown += "" if event.kl is None else f"KL {units.divergence(event.kl)}, "
            return f"[bold]{event.name}[/]: {shown}{event.seconds:.1f} s"
        if isinstance(event, Verified):
            return (
                "llama.cpp agrees: mean |difference| of log-probabilities "
                f"{event.mean_log_probability_difference:.4f}, "
                f"perplexity {event.perplexity_llama_cpp:.4f} against {event.perplexity_torch:.4f}"
            )
        if isinstance(event, Failed):
            return None
        return None
