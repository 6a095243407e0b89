"""Tables and figure of `learning.py`: means, standard errors and paired differences of the finished runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.core.errors import MissingExtraError
from edgetune.core.files import write_atomic, write_text_atomic
from learning_studies import Study

ALL = -1
"""Stands for the mean over all pool sizes."""
LIMIT = 2.0
"""Standard errors from which on a difference is marked."""
HEAD = """# {title}

Written by `make {verb}`; do not edit. Held-out loss (nats a response token, {held_out} records no step saw)
after {steps} steps of batch {batch_size} (records cut at {tokens} tokens, fp32, plain SGD, eps {eps:g}), mean ± its
standard error over {seeds} seeds. A seed fixes the pool's key, the draw of indices and the order of batches, the same
for all kinds. The learning rate is the best of a sweep with fresh Rademacher directions on other seeds, and the same
for all kinds.{about}

![Held-out loss by pool size, and the paired differences](../images/{image})
"""


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; infinite and NaN values make both infinite or NaN."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) * (value - mean) for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def chance(degrees: int, limit: float = LIMIT) -> float:
    """Return P(t > limit) of Student's t, by Simpson's rule over the density between 0 and the limit."""
    parts, power = 200, -(degrees + 1) / 2
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = [scale * math.pow(1 + (limit * i / parts) ** 2 / degrees, power) for i in range(parts + 1)]
    weighed = density[0] + density[-1] + 4 * sum(density[1:-1:2]) + 2 * sum(density[2:-1:2])
    return 0.5 - weighed * limit / parts / 3


def summarise(study: Study, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return cells and paired differences of the runs.

    Args:
        study: names the columns and pairs.
        found: `settings`, `tasks` and `runs` of `learning.py`.
    """
    losses: dict[tuple[str, int, str], list[float]] = {}
    for row in sorted(found["runs"], key=lambda row: int(row["seed"])):
        losses.setdefault((row["task"], row["pool"], study.label(row["kind"], row["pool"])), []).append(
            row["losses"][-1]
        )
    cells = []
    for (task, pool, kind), values in losses.items():
        mean, error = spread(values)
        cells.append(
            {"task": task, "pool": pool, "kind": kind, "mean": mean, "error": error, "losses": values}
        )
    return {
        "settings": found["settings"],
        "tasks": found["tasks"],
        "seeds": len({row["seed"] for row in found["runs"]}),
        "dropped": sum(row["dropped"] for row in found["runs"]),
        "cells": cells,
        "differences": [one for task in found["tasks"] for one in _differences(study, task, losses)],
    }


def _differences(
    study: Study, task: str, losses: Mapping[tuple[str, int, str], list[float]]
) -> Iterable[dict[str, Any]]:
    """Yield the differences of one task, pair by pair: at every K, fresh, and the mean over K of each seed."""
    for kind, other in study.pairs:
        by_pool = {
            pool: [a - b for a, b in zip(losses[task, pool, kind], losses[task, pool, other], strict=True)]
            for pool in sorted({pool for name, pool, _ in losses if name == task})
            if (task, pool, kind) in losses and (task, pool, other) in losses
        }
        pools = [values for pool, values in by_pool.items() if pool]
        if len(pools) > 1:
            by_pool[ALL] = [sum(values) / len(pools) for values in zip(*pools, strict=True)]
        for pool, values in by_pool.items():
            mean, error = spread(values)
            marked = not mean <= LIMIT * error  # a NaN of a diverged run is worse
            yield {
                "task": task, "pool": pool, "kind": kind, "other": other,
                "mean": mean, "error": error, "worse": marked,
            }  # fmt: skip


def table(study: Study, summary: Mapping[str, Any], image: str) -> str:
    """Return the Markdown page."""
    about = f"\n\n{study.about}" if study.about else ""
    said = {"title": study.title, "verb": study.verb, "about": about, "image": image}
    lines = [HEAD.format(**summary["settings"], seeds=summary["seeds"], **said)]
    for name, task in summary["tasks"].items():
        lines += _task(study, name, task, summary)
    lines += ["## Verdict", "", *_verdict(study, summary), ""]
    lines += [study.after] if study.after else []
    return "\n".join(lines)


def _task(study: Study, name: str, task: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    cells = {(c["pool"], c["kind"]): c for c in summary["cells"] if c["task"] == name}
    pools = sorted({pool for pool, _ in cells}, key=lambda pool: pool or math.inf)
    labels = [column.label for column in study.columns]
    kinds = [kind for kind in labels if any((pool, kind) in cells for pool in pools)]
    lines = [f"## {name}: {task['weights']:,} weights", ""]
    lines += [f"Loss before the first step {task['base_loss']:.4f}; learning rate {task['rate']:g}."]
    if task["sweep"]:
        tried = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in task["sweep"].items())
        lines += [f"Sweep, mean loss by rate: {tried}."]
    lines += ["", f"| K | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for pool in pools:
        shown = [_loss(cells.get((pool, kind))) for kind in kinds]
        lines.append(f"| {pool or 'fresh'} | {' | '.join(shown)} |")
    return [*lines, "", *_pairs(study, name, task, summary), ""]


def _pairs(study: Study, name: str, task: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """Return the table of differences; the gain is what the loss before the first step lost."""
    found = {(d["pool"], d["kind"], d["other"]): d for d in summary["differences"] if d["task"] == name}
    means = {(c["pool"], c["kind"]): c["mean"] for c in summary["cells"] if c["task"] == name}
    pairs = [pair for pair in study.pairs if any((pool, *pair) in found for pool, *_ in found)]
    if not pairs:
        return []
    one, other = study.pairs[0]
    lines = [
        f"| K | {' | '.join(' - '.join(pair) for pair in pairs)} | gain of {one} / gain of {other} |",
        "|---" * (len(pairs) + 2) + "|",
    ]
    for pool in sorted({pool for pool, *_ in found}, key=lambda pool: (pool == ALL, pool or math.inf)):
        shown = [_difference(found.get((pool, *pair))) for pair in pairs]
        sizes = [size for size in {size for size, _ in means} if size == pool or (pool == ALL and size)]
        gain = {
            kind: sum(task["base_loss"] - means.get((size, kind), math.nan) for size in sizes)
            for kind in (one, other)
        }
        ratio = gain[one] / gain[other] if gain[other] else math.nan
        label = {ALL: "mean over K", 0: "fresh"}.get(pool, str(pool))
        lines.append(f"| {label} | {' | '.join(shown)} | {'' if math.isnan(ratio) else f'{ratio:.3f}'} |")
    return lines


def _loss(cell: Mapping[str, Any] | None) -> str:
    return f"{cell['mean']:.4f} ± {cell['error']:.4f}" if cell else ""


def _difference(one: Mapping[str, Any] | None) -> str:
    if not one:
        return ""
    return f"{one['mean']:+.4f} ± {one['error']:.4f}{' **worse**' if one['worse'] else ''}"


def _verdict(study: Study, summary: Mapping[str, Any]) -> list[str]:
    rows = [d for d in summary["differences"] if (d["kind"], d["other"]) in study.judged]
    single = [d for d in rows if d["pool"] != ALL]
    where = "at one K or fresh" if any(d["pool"] == 0 for d in single) else "at one K"
    by_chance = chance(summary["seeds"] - 1)
    said = (
        f"Marked as worse by more than {LIMIT:g} standard errors: {sum(d['worse'] for d in single)} of {len(single)} "
        f"differences of {study.subject} {where} (chance alone marks {by_chance * len(single):.1f}: "
        f"one in {1 / by_chance:.0f} of equal pairs with {summary['seeds']} seeds); better by as much: "
        f"{sum(d['mean'] < -LIMIT * d['error'] for d in single)}."
    )
    if study.control:
        control = [
            d for d in summary["differences"] if (d["kind"], d["other"]) in study.control and d["pool"] > 0
        ]
        names = ", ".join(" - ".join(pair) for pair in study.control)
        said += f" Of the control, {names} at one K, {sum(d['worse'] for d in control)} of {len(control)} are marked."
    lines = [said]
    for one in (d for d in rows if d["pool"] == ALL):
        low, high = one["mean"] - LIMIT * one["error"], one["mean"] + LIMIT * one["error"]
        lines.append(
            f"Mean over K, {one['task']}: {study.subject} - {one['other']} lies between {low:+.4f} and "
            f"{high:+.4f} nats (two standard errors{', worse' if one['worse'] else ''})."
        )
    return [*lines, f"Steps dropped for a loss that was not finite: {summary['dropped']}."]


def write_results(study: Study, found: Mapping[str, Any], out: Path, image: Path) -> str:
    """Write figures, page and picture of a study; return the page."""
    summary = summarise(study, found)
    text = table(study, summary, image.name)
    write_text_atomic(out / f"{study.name}.json", json.dumps(summary, indent=1) + "\n")
    write_text_atomic(out / f"{study.name}.md", text)
    write_atomic(image, lambda path: draw(study, summary, path))
    return text


def draw(study: Study, summary: Mapping[str, Any], path: Path) -> None:
    """Draw the losses by pool size above the paired differences, one column a task.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots", "a figure") from error
    tasks = list(summary["tasks"])
    figure = Figure(figsize=(5.2 * len(tasks), 6.4), layout="constrained")
    grid = figure.subplots(2, len(tasks), squeeze=False)
    for column, name in enumerate(tasks):
        pools = sorted({c["pool"] for c in summary["cells"] if c["pool"]})
        _draw_losses(study, grid[0][column], name, pools, summary)
        _draw_differences(study, grid[1][column], name, pools, summary)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_losses(study: Study, axes: Any, name: str, pools: list[int], summary: Mapping[str, Any]) -> None:
    for shift, column in zip(_beside(len(study.columns), 0.12), study.columns, strict=True):
        kind = column.label
        cells = {c["pool"]: c for c in summary["cells"] if c["task"] == name and c["kind"] == kind}
        style: dict[str, Any] = {"color": column.colour, "marker": column.mark, "markersize": 5, "capsize": 3}
        found = [(place + shift, cells[pool]) for place, pool in enumerate(pools) if pool in cells]
        axes.errorbar(
            [place for place, _ in found], [c["mean"] for _, c in found], [c["error"] for _, c in found],
            label=kind, linewidth=1, **style,
        )  # fmt: skip
        if 0 in cells:
            axes.errorbar(len(pools) + shift, cells[0]["mean"], cells[0]["error"], **style)
    axes.axhline(summary["tasks"][name]["base_loss"], color="grey", linestyle=":", label="before tuning")
    axes.set_xticks(range(len(pools) + 1), [*map(str, pools), "fresh"])
    axes.set(
        title=f"{name}: loss after {summary['settings']['steps']} steps", ylabel="held-out loss, nats a token"
    )
    axes.legend(frameon=False)


def _draw_differences(
    study: Study, axes: Any, name: str, pools: list[int], summary: Mapping[str, Any]
) -> None:
    mine, columns = study.columns[-1], {column.label: column for column in study.columns}
    compared = {(d["pool"], (d["kind"], d["other"])): d for d in summary["differences"] if d["task"] == name}
    fresh = [0] if any((0, pair) in compared for pair in study.judged) else []
    for shift, (kind, other), face in zip(
        _beside(len(study.judged), 0.2), study.judged, ("full", "none"), strict=False
    ):
        found = [(place, (pool, (kind, other))) for place, pool in enumerate([*pools, *fresh, ALL])]
        places = [(place + shift, compared[where]) for place, where in found if where in compared]
        style: dict[str, Any] = {"fmt": mine.mark, "fillstyle": face, "color": columns[other].colour}
        axes.errorbar(
            [place for place, _ in places], [d["mean"] for _, d in places], [LIMIT * d["error"] for _, d in places],
            **style, markersize=5, capsize=3, label=f"{kind} - {other}",
        )  # fmt: skip
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(
        range(len(pools) + len(fresh) + 1), [*map(str, pools), *(["fresh"] if fresh else []), "mean"]
    )
    axes.set(
        title=f"{name}: paired difference ± 2 standard errors",
        xlabel="pool size K",
        ylabel="nats; above 0 is worse",
    )
    axes.legend(frameon=False)


def _beside(count: int, distance: float) -> list[float]:
    """Return places around 0, so that what stands at one pool size does not overlap."""
    return [distance * (place - (count - 1) / 2) for place in range(count)]
