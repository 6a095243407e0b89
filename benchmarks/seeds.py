"""Run the embedded recipe with several seeds and write the mean and spread of every stage (`make bench`).

The seed changes the records, their split, the devices' draws and the directions; the base model stays.
Figures come from each run's summary.json; nothing is computed here but means and differences.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

HEAD = """# The embedded demo over several seeds

Written by `make bench`; do not edit. Held-out prompts occur in no device's records; about a fifth of the responses do,
under other prompts. Peak memory is that of the whole processes that did the work, Python and torch included: while
tuning this one and its workers together, in the last row llama.cpp's own.

"""
STAGES = ("base", "tuned", "rounded", "compressed", "llama.cpp")


def one(seed: int, out: Path, overrides: list[str]) -> dict[str, Any]:
    """Run one seed in a process of its own, so that no seed's memory counts for another, and return its summary."""
    command = [sys.executable, "-m", "edgetune", "run", "--seed", str(seed), "--out", str(out)]
    subprocess.run([*command, *(f"--set={one}" for one in overrides)], check=True)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def spread(values: list[float], digits: int) -> str:
    """Return `mean ± standard deviation` of the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def _far(got: list[dict[str, Any]]) -> str:
    """Return the divergence from the tuned model, in thousandths, where it was measured."""
    values = [1e3 * row["kl"] for row in got if row["kl"] is not None]
    return f"{spread(values, 2)} e-3" if values else ""


def table(summaries: list[dict[str, Any]]) -> str:
    """Return the Markdown tables of several runs."""
    rows = [{stage["name"]: stage for stage in summary["stages"]} for summary in summaries]
    seeds = [summary["seed"] for summary in summaries]
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds.",
        "",
        "| stage | loss | KL, all tokens | perplexity | Rouge-L F1 | file size, bytes | peak memory, MB | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in STAGES:
        got = [row[name] for row in rows]
        lines.append(
            f"| {name} | {spread([g['loss'] for g in got], 4)} | {_far(got)} "
            f"| {spread([g['perplexity'] for g in got], 4)} | {spread([g['rouge_l'] for g in got], 2)} "
            f"| {round(statistics.mean(g['size_bytes'] for g in got)):,} "
            f"| {spread([g['peak_memory_bytes'] / 1e6 for g in got], 0)} | {spread([g['seconds'] for g in got], 1)} |"
        )
    lines += [
        "",
        "| seed | Rouge-L base → tuned | loss base → tuned | compressed - tuned, Rouge-L "
        "| compressed / tuned, perplexity | llama.cpp - compressed, Rouge-L | llama.cpp / compressed, perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, row in zip(seeds, rows, strict=True):
        base, tuned, packed, file = row["base"], row["tuned"], row["compressed"], row["llama.cpp"]
        lines.append(
            f"| {seed} | {base['rouge_l']:.1f} → {tuned['rouge_l']:.1f} ({tuned['rouge_l'] - base['rouge_l']:+.1f}) "
            f"| {base['loss']:.4f} → {tuned['loss']:.4f} | {packed['rouge_l'] - tuned['rouge_l']:+.2f} "
            f"| {packed['perplexity'] / tuned['perplexity']:.4f} | {file['rouge_l'] - packed['rouge_l']:+.2f} "
            f"| {file['perplexity'] / packed['perplexity']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main(
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    work: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("out/seeds"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    set: Annotated[list[str], typer.Option("--set", help="Override a recipe key.")] = [],  # noqa: B006
) -> None:
    """Run the seeds and write `demo.json` and `demo.md`."""
    summaries = [one(seed, work / str(seed), set) for seed in range(seeds)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(summaries, indent=1) + "\n")
    text = HEAD + table(summaries)
    (out / "demo.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
