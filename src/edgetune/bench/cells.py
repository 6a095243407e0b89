"""Runs as cells of a table: each a process of its own, its row appended when it is done, a started table goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgetune.core.errors import DataError
from edgetune.core.event_log import read_events
from edgetune.core.files import write_atomic

Row = dict[str, Any]


class Named(Protocol):
    """Anything that a table has a row of."""

    @property
    def name(self) -> str:
        """Names it among all."""


C = TypeVar("C", bound=Named)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of `edgetune federate`.

    Args:
        table: which table it is of.
        model: model folder, name or `embedded`.
        method: public name.
        seed: of everything.
        settings: recipe keys and their values.
        data: file of records; the embedded ones if not given.
        told: what the row says besides.
    """

    table: str
    model: str
    method: str
    seed: int
    settings: Mapping[str, object]
    data: str | None = None
    told: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the cell among all, by a digest of its settings too: a row of this name is this cell's."""
        told = "".join(f"-{key}{value}" for key, value in self.told.items())
        digest = sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.table}-{Path(self.model).name}-{self.method}{told}-{self.seed}-{digest}"

    @property
    def command(self) -> list[str]:
        """The command line without its output folder."""
        source = [] if self.data is None else ["--data", self.data]
        settings = {"seed": self.seed, "threads": 1, "federation.workers": 1, **self.settings}
        said = [f"--set={key}={_said(value)}" for key, value in settings.items()]
        return ["federate", self.method, "--model", self.model, *source, "--quiet", *said]


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_cells(
    cells: Iterable[C],
    rows: Path,
    work: Path,
    *,
    jobs: int,
    told: Callable[[Row], None],
    make: Callable[[C, Path], Row] | None = None,
) -> list[Row]:
    """Run what is not done yet and return all rows of these cells.

    Args:
        cells: the table.
        rows: a .jsonl file; rows of earlier runs count.
        work: folder of the runs, which go on where they were killed.
        jobs: processes side by side, one thread each.
        told: called with every new row.
        make: makes the row of a cell in a folder of its own; a run of `edgetune federate` if not given.

    Raises:
        DataError: after all others are done, if runs failed, with what each said; rows that were done stay.
    """
    wanted = list(cells)
    done = {row["cell"]: row for row in read_rows(rows)}
    missing = [cell for cell in wanted if cell.name not in done]
    failed: list[DataError] = []
    with ThreadPoolExecutor(jobs) as pool:
        row_of: Callable[[Any, Path], Row] = make or _run
        runs = [pool.submit(row_of, cell, work / cell.name) for cell in missing]
        try:
            for run in as_completed(runs):
                try:
                    row = run.result()
                except DataError as error:
                    failed.append(error)
                    continue
                done[row["cell"]] = row
                _append(rows, row)
                told(row)
        finally:
            for run in runs:
                run.cancel()
    if failed:
        names = ", ".join(str(error.where) for error in failed)
        raise DataError(
            f"{len(failed)} of {len(missing)} runs failed, the first because {failed[0].what}",
            where=names,
            hint="the others are done; the same command tries these again",
        )
    return [done[cell.name] for cell in wanted]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; none if there is no such file."""
    if path.exists():
        yield from (json.loads(line) for line in path.read_text("utf-8").splitlines())


def in_process(module: str, said: Mapping[str, object], where: str, out: Path) -> Row:
    """Run a module with a description of what to do, on one thread, and return what it prints last.

    Args:
        module: takes the path of a JSON file.
        said: what is written there.
        where: names the run in an error.
        out: folder of that file.

    Raises:
        DataError: if it failed, with what it said.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cell.json"
    path.write_text(json.dumps(said), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", module, str(path)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise DataError(f"a run failed: {done.stderr.strip()[-400:]}", where=where)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in [*read_rows(path), row])
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _run(cell: Cell, out: Path) -> Row:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgetune", *cell.command, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    log = out / "events.jsonl"
    events = list(read_events(log)) if log.exists() else []
    rounds = [one for one in events if one["event"] == "round"]
    if done.returncode not in (0, 10) or not rounds:
        raise DataError(
            f"a run ended in exit {done.returncode}: {done.stderr.strip()[-400:]}", where=cell.name
        )
    return _row(cell, done.returncode, events, rounds)


def _row(cell: Cell, code: int, events: list[Row], rounds: list[Row]) -> Row:
    stages = {one["name"]: one for one in events if one["event"] == "stage"}
    rates = [one for one in events if one["event"] == "rate"]
    base, tuned = stages.get("base", {}), stages.get("tuned", {})
    return {
        "cell": cell.name, "model": Path(cell.model).name, "method": cell.method, "seed": cell.seed, **cell.told,
        "exit": code, "rounds": len(rounds), "base_loss": base.get("loss"), "loss": tuned.get("loss"),
        "base_rouge_l": base.get("rouge_l"), "rouge_l": tuned.get("rouge_l"),
        "up": [one["payload_up_bytes"] for one in rounds], "down": [one["payload_down_bytes"] for one in rounds],
        "losses": [one["loss"] for one in rounds], "seconds": sum(one["seconds"] for one in rounds),
        "learning_rate": rates[-1]["learning_rate"] if rates else None, **_machine(events),
    }  # fmt: skip


def _machine(events: list[Row]) -> Row:
    """Return what a row's bits and seconds are of: torch, the kernel of directions, the kind of device."""
    started = next((one for one in events if one["event"] == "run_started"), None)
    if started is None:
        return {}
    versions = started["versions"]
    return {"torch": versions.get("torch"), "kernel": versions.get("kernel"), "device": started["device"]}
