"""What the rows of the comparison at equal forward passes say: one line a method, and how far it is ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune.bench.cells import Row
from edgetune.bench.federation import spread
from edgetune.bench.forwards import BASE, CEILING, CHOOSE, RUN


def lines_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one line a way of one task and work: means over seeds and standard deviations, the best first.

        closed = (l_base - l) / (l_base - l_ceiling)      of the means: the part of the gap to back-propagation

    Args:
        rows: of one task and work, in the order in which they were made: of two of one way and seed the later counts.
    """
    chosen = {row["way"]: row for row in rows if row["phase"] == RUN}
    measured = {(row["way"], row["seed"]): row for row in rows if row["phase"] == RUN}
    lines = []
    for way, newest in chosen.items():
        mine = [row for (name, _), row in measured.items() if name == way and _same(row, newest)]
        ended = [row for row in mine if row["loss"] is not None]
        tried = [row for row in rows if row["way"] == way and row["phase"] == CHOOSE]
        judged = [row for row in tried if row["learning_rate"] == newest["learning_rate"]]
        judged = [row for row in judged if row["loss"] is not None]
        lines.append({
            **{key: newest[key] for key in ("way", "passes", "steps", "learning_rate", "eps", "factor")},
            "seeds": len(mine), "ended": len(ended), "tried": len({row["learning_rate"] for row in tried}),
            "development": spread(judged, "loss")[0] if judged else None,
            **{key: spread(ended, key) if ended else None for key in ("loss", "rouge_l", "base_rouge_l")},
            **{key: spread(mine, key) for key in ("base_loss", "cpu_seconds")},
            "dropped": sum(row["dropped"] for row in mine),
            "points": _curve(ended),
            "by_seed": {row["seed"]: row["loss"] for row in ended},
        })  # fmt: skip
    means = {line["way"]: line["loss"][0] for line in lines if line["loss"]}
    gap = means[BASE] - means[CEILING] if BASE in means and CEILING in means else math.nan
    for line in lines:
        line["closed"] = (means[BASE] - line["loss"][0]) / gap if line["loss"] and gap > 0 else None
    return sorted(lines, key=lambda line: line["loss"][0] if line["loss"] else math.inf)


def ahead(line: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return how much lower a way's loss is than another's, by seeds that both ended, and the standard error of that.

    None with less than two such seeds.
    """
    both = sorted(set(line["by_seed"]) & set(other["by_seed"]))
    apart = [{"d": other["by_seed"][seed] - line["by_seed"][seed]} for seed in both]
    if len(apart) < 2:
        return None
    mean, deviation = spread(apart, "d")
    return mean, deviation / math.sqrt(len(apart))


def _same(row: Row, other: Row) -> bool:
    return all(row[key] == other[key] for key in ("learning_rate", "eps", "method", "steps", "passes"))


def _curve(rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """Return forward passes, mean loss and its standard deviation."""
    found = []
    for each in zip(*(row["points"] for row in rows), strict=True):
        losses = [{"loss": loss} for _, loss in each if loss is not None]
        if losses:
            found.append((float(each[0][0]), *spread(losses, "loss")))
    return found
