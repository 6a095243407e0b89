"""Tune models and tasks with no learning rate given, and say how many ended below their base (`make bench-defaults`).

A cell is one run of `edgetune tune` (fedkseed: `edgetune federate`) in a process of its own; its row is appended to
defaults.jsonl when it is done, and a started table goes on where it was interrupted. Nothing but sizes is set.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

METHODS = ("mezo", "fedkseed", "mezo_lora", "lora")
SEEDS = (0, 1, 2)
CLASSES = ("a description", "an entity", "an abbreviation", "a person", "a number", "a place")
TREC = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 5, "5": 4}
"""Class numbers of the file, as indices of CLASSES."""
HEAD = """# Defaults: no rate is given

Written by `make bench-defaults`; do not edit. Held-out loss (nats a response token) before and after runs in which
nothing but sizes is set: `learning_rate` and `eps` are `auto`. One thread a run; a cell has up to {seeds} seeds: each
changes records, split, order and directions. `auto` is what finding both took, within the run's time, on a shared
machine.

"""

COLUMNS = """| task | method | base | tuned | change, each seed | learning rate | eps | auto, s | run, s |
|---|---|---|---|---|---|---|---|---|"""
SHARED = Path(os.environ.get("EDGETUNE_DATA", "../shared/data"))


@dataclass(frozen=True, slots=True)
class Size:
    """How large a cell is: rounds x steps of some records, cut at some tokens."""

    rounds: int
    steps: int
    dense_steps: int
    batch: int
    tokens: int
    held_out: int


SIZES = {
    "stories260K": Size(3, 40, 10, 4, 128, 64),
    "SmolLM2-135M-Instruct": Size(2, 15, 4, 2, 56, 12),
}


def trec(data: Path) -> Iterator[dict[str, str]]:
    """Yield questions with the kind of thing they ask for."""
    for line in (data / "classification" / "TREC.train.all").read_text("latin-1").splitlines():
        number, _, question = line.partition(" ")
        yield {"instruction": "What does this question ask for?", "context": question,
               "response": CLASSES[TREC[number]]}  # fmt: skip


def sciq(data: Path) -> Iterator[dict[str, str]]:
    """Yield scientific questions with short answers."""
    for part in ("train", "dev", "test"):
        found = json.loads((data / "superni" / "task591_sciq_answer_generation" / f"{part}.json").read_text())
        for one in found["Instances"]:
            yield {
                "instruction": found["Definition"][0],
                "context": one["input"],
                "response": one["output"][0],
            }


def dolly(data: Path) -> Iterator[dict[str, str]]:
    """Yield instructions that need no context."""
    for line in (data / "dolly" / "databricks-dolly-15k.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if not record["context"]:
            yield {key: record[key] for key in ("instruction", "context", "response")}


TASKS: dict[str, Callable[[Path], Iterator[dict[str, str]]]] = {"trec": trec, "sciq": sciq, "dolly": dolly}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    model: str
    task: str
    method: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names it in the list of those that are done."""
        return self.model, self.task, self.method, self.seed


def run(cell: Cell, source: Path, work: Path) -> dict[str, Any]:
    """Do a cell and return its row."""
    size, out = SIZES[cell.model], work / "-".join(map(str, cell.key))
    verb = "federate" if cell.method == "fedkseed" else "tune"
    steps = size.dense_steps if cell.method == "lora" else size.steps
    settings = {
        "seed": cell.seed, "threads": 1, "data.records": 400, "data.held_out": size.held_out, "data.calibration": 4,
        "data.max_tokens": size.tokens, "federation.rounds": size.rounds, "method.local_steps": steps,
        "method.batch_size": size.batch, "evaluation.max_new_tokens": 2, "evaluation.samples": 0,
        "evaluation.every": size.rounds, "federation.devices": 8, "federation.participation": 0.25,
        "split.kind": "iid",
    }  # fmt: skip
    if verb == "tune":
        settings |= {"federation.devices": 1}
    elif cell.model != "stories260K":
        settings |= {"federation.participation": 0.125, "federation.workers": 1}
    command = [sys.executable, "-m", "edgetune", verb, cell.method, "--model", str(source), "--quiet",
               "--data", str(work / f"{cell.task}.jsonl"), "--out", str(out)]  # fmt: skip
    environment = {**os.environ, "EDGETUNE_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *(f"--set={key}={value}" for key, value in settings.items())],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    log = out / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not any(one["event"] == "rate" for one in events):
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    stages = {one["name"]: one["loss"] for one in events if one["event"] == "stage"}
    (rate,) = [one for one in events if one["event"] == "rate"][-1:]
    whole = events[-1]["time"] - events[0]["time"] + rate["seconds"] * (rate["origin"] == "test")
    return {
        "model": cell.model, "task": cell.task, "method": cell.method, "seed": cell.seed, "exit": done.returncode,
        "base": stages.get("base"), "tuned": stages.get("tuned"), "learning_rate": rate["learning_rate"],
        "eps": rate["eps"], "auto_seconds": rate["seconds"], "auto_records": rate["records"],
        "seconds": round(whole, 1), "said": done.stderr.strip()[-300:],
    }  # fmt: skip


def page(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown page."""
    text = HEAD.format(seeds=len(SEEDS))
    by_cell: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_cell.setdefault((row["model"], row["task"], row["method"]), []).append(row)
    wanted = len(SIZES) * len(TASKS) * len(METHODS) * len(SEEDS)
    below = sum(mean(got, "tuned") < mean(got, "base") for got in by_cell.values())
    each = sum(below_base(row) for row in rows)
    text += (
        f"{below} of {len(by_cell)} cells end below their base on average, {each} of {len(rows)} runs do.\n"
    )
    if len(rows) < wanted:
        text += f"\nNot complete: {len(rows)} of {wanted} runs are done; `make bench-defaults` goes on with the rest.\n"
    for model, size in SIZES.items():
        mine = {key: got for key, got in by_cell.items() if key[0] == model}
        if not mine:
            continue
        text += (
            f"\n## {model}\n\n{size.rounds} rounds of {size.steps} steps ({size.dense_steps} with gradients) of "
            f"{size.batch} records cut at {size.tokens} tokens; {size.held_out} held-out records.\n\n{COLUMNS}\n"
        )
        for (_, task, method), got in sorted(mine.items(), key=lambda one: order(one[0])):
            changes = ", ".join(
                "-" if row["tuned"] is None else f"{row['tuned'] - row['base']:+.3f}" for row in got
            )
            mark = "" if mean(got, "tuned") < mean(got, "base") else " **not below**"
            radius = "" if got[0]["eps"] is None else ", ".join(f"{row['eps']:.2g}" for row in got)
            text += (
                f"| {task} | {method} | {mean(got, 'base'):.4f} | {mean(got, 'tuned'):.4f}{mark} | {changes} "
                f"| {', '.join(format(row['learning_rate'], '.2g') for row in got)} | {radius} "
                f"| {mean(got, 'auto_seconds'):.1f} | {mean(got, 'seconds'):.1f} |\n"
            )
    return text


def order(key: tuple[str, str, str]) -> tuple[int, int]:
    """Return the place of a cell in the table."""
    return list(TASKS).index(key[1]), METHODS.index(key[2])


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Return the mean over seeds; a run without a tuned model counts as infinite."""
    return statistics.mean(float("inf") if row[name] is None else row[name] for row in rows)


def below_base(row: dict[str, Any]) -> bool:
    """Say whether a run ended below its base."""
    return row["tuned"] is not None and row["tuned"] < row["base"]


def main(
    data: Annotated[Path, typer.Option(help="Folder of the shared data.")] = SHARED,
    real: Annotated[
        Path | None, typer.Option(help="SmolLM2-135M-Instruct as GGUF; left out if not given.")
    ] = None,
    small: Annotated[bool, typer.Option(help="Also the small model.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("docs/results"),
    work: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("out/defaults"),
    jobs: Annotated[int, typer.Option(help="Runs side by side.")] = 1,
) -> None:
    """Do what is missing of the table, and write it."""
    models = {"stories260K": data / "models" / "stories260K"} if small else {}
    models |= {"SmolLM2-135M-Instruct": real} if real is not None else {}
    work.mkdir(parents=True, exist_ok=True)
    for name, records in TASKS.items():
        lines = "".join(json.dumps({**record, "category": name}) + "\n" for record in records(data))
        (work / f"{name}.jsonl").write_text(lines)
    kept = out / "defaults.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    finished = {(row["model"], row["task"], row["method"], row["seed"]) for row in rows}
    cells = [
        Cell(model, task, method, seed) for seed in SEEDS for model in models for task in TASKS for method in METHODS
    ]  # fmt: skip
    missing = [cell for cell in cells if cell.key not in finished]
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(lambda cell: run(cell, models[cell.model], work), missing):
            rows.append(row)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    (out / "defaults.md").write_text(page(rows))


if __name__ == "__main__":
    typer.run(main)
