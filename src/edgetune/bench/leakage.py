"""What does what a device sends tell of its records? Attacks on single uploads, by method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from edgetune.bench.cells import Row, in_process, run_cells
from edgetune.bench.forwards import Task
from edgetune.core.errors import ConfigError
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options

CANDIDATES = 64
"""Records of which a device trained on some."""
REFERENCES = 128
"""Other records that the attacker has, to learn from what they would have sent."""
BATCHES = (1, 4, 16)
"""Records of a device, all of them in every step."""
SECRETS = 8
"""Batches of each size that are drawn from the candidates, at most: no two share a record."""
SEVERAL, MANY = 4, 10
"""Steps of a round where a gradient is taken, and where a number is sent for each."""
ROWS = "leakage.jsonl"


@dataclass(frozen=True, slots=True)
class Way:
    """A method with its settings in the audit.

    Args:
        method: public name.
        options: by their names in a recipe's [method] section.
        steps: local steps of a round, one count after another.
        epsilon: of a round, for which the noise is found, the device taking all of its records in every step; None
            leaves the method as it is.
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    steps: tuple[int, ...] = (1, MANY)
    epsilon: float | None = None


QUIET: dict[str, object] = {"noise_multiplier": 0.0, "epsilon": 0.0}
"""A private method's settings without noise: what the attacker compares with."""
CLIP = 5.0
"""Bound of a record's slope on the embedded model, as in its packaged recipe."""
WAYS: dict[str, Way] = {
    "fedavg": Way("fedavg", steps=(1, SEVERAL)),
    "fedit": Way("fedit", steps=(1, SEVERAL)),
    "fedskip": Way("fedskip", steps=(1, SEVERAL)),
    "fedsubspace": Way("fedsubspace", steps=(1, SEVERAL)),
    "fedskip-once": Way("fedskip", {"batch_size": max(BATCHES) // SEVERAL}, (SEVERAL,)),
    "fedskip-256": Way("fedskip", {"pool": 256}, (1,)),
    "fedskip-16": Way("fedskip", {"pool": 16}, (1,)),
    "fedkseed": Way("fedkseed"),
    "fwdllm": Way("fwdllm", steps=(MANY,)),
    "one_byte": Way("one_byte", steps=(MANY,)),
    "feedsign": Way("feedsign", steps=(MANY,)),
    "dpzero-no-noise": Way("dpzero", {"clip": CLIP, **QUIET}, (MANY,)),
    "dpzero": Way("dpzero", {"clip": CLIP}, (MANY,), epsilon=6.0),
    "dpzero-epsilon-1": Way("dpzero", {"clip": CLIP}, (MANY,), epsilon=1.0),
}
"""What is audited, by name: a line more is a method more. Of `once` the largest batch is taken in parts, each record in
one step."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One process: a method on a model and its data, one draw of candidates, secrets and directions.

    Args:
        task: name of the model and its data.
        model, data: as in `forwards.Task`.
        settings: recipe keys of the data.
        way: name in the table.
        method, options, steps, epsilon: as in `Way`.
        seed: of the draw.
        candidates, references, batches, secrets: how many.
    """

    task: str
    model: str
    data: str | None
    settings: Mapping[str, object]
    way: str
    method: str
    options: Mapping[str, object]
    steps: tuple[int, ...]
    epsilon: float | None
    seed: int
    candidates: int = CANDIDATES
    references: int = REFERENCES
    batches: tuple[int, ...] = BATCHES
    secrets: int = SECRETS

    @property
    def name(self) -> str:
        """Names it among all, by a digest of all that it says but the folders of model and data."""
        said = {key: value for key, value in asdict(self).items() if key not in ("model", "data")}
        digest = sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
        return f"leakage-{self.task}-{self.way}-{self.seed}-{digest}"


def ways_of(names: Sequence[str]) -> dict[str, Way]:
    """Return those that are asked for by their names here, a method's or that of a file with one; all if none is named.

    Raises:
        ConfigError: if a method cannot be audited, saying why.
    """
    found = {Path(name).stem: WAYS.get(name, Way(name)) for name in names} if names else WAYS
    for way in found.values():
        variant(way)
    return dict(found)


def variant(way: Way) -> TuningMethod:
    """Return the method of a way.

    Raises:
        ConfigError: if an option does not fit, or what a device sends hangs on more than its records.
    """
    method = with_options(tuning_method(way.method), dict(way.options))
    if method.survey is not None:
        raise ConfigError(
            f"{way.method} asks devices before a round, and what it then trains hangs on their answers",
            where="--only",
            hint="edgetune bench leakage --only fedit",
        )
    if method.private and way.epsilon is None and not _settled(method):
        raise ConfigError(
            f"the noise of {way.method} follows from the length of a run",
            where="--only",
            hint=f"one of {', '.join(WAYS)}",
        )
    return method


def _settled(method: TuningMethod) -> bool:
    return method.protection is not None and method.protection.settled


def audits_of(task: Task, ways: Mapping[str, Way], seeds: int) -> list[Audit]:
    """Return the processes of one task, seed by seed."""
    return [
        Audit(
            task.name, task.model, task.data, task.settings, name, way.method, way.options, way.steps, way.epsilon, seed
        )
        for seed in range(seeds)
        for name, way in ways.items()
    ]  # fmt: skip


def leakage(audits: Sequence[Audit], out: Path, *, jobs: int, told: Callable[[Row], None]) -> list[Row]:
    """Run what is not done yet and return the rows.

    Args:
        audits: the table.
        out: folder of `leakage.jsonl`, which grows, and of the runs.
        jobs: processes side by side.
        told: called with every new row.

    Raises:
        DataError: after all others are done, if runs failed.
    """
    return run_cells(audits, out / ROWS, out / "runs", jobs=jobs, told=told, make=row_of)


def row_of(audit: Audit, out: Path) -> Row:
    """Run an audit in a process of its own and return its row.

    Raises:
        DataError: if it failed, with what it said.
    """
    told = {key: getattr(audit, key) for key in ("task", "way", "method", "seed", "candidates", "references")}
    return {
        "cell": audit.name,
        **told,
        **in_process("edgetune.bench.leaking", asdict(audit), audit.name, out),
    }


def lines_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one line a way, number of records and steps of one task: means over seeds, with standard errors.

    A figure is (mean, standard error), None where no attack gives one; the error is 0 for one seed.
    """
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        for case in row["cases"]:
            groups.setdefault((row["way"], case["records"], case["steps"]), []).append(row | case)
    lines = []
    for (way, records, steps), mine in groups.items():
        figures = {
            key: _figure([one["figures"].get(key) for one in mine])
            for key in dict.fromkeys(key for one in mine for key in one["figures"])
        }
        first = mine[0]
        lines.append({
            "way": way, "records": records, "steps": steps, "seeds": len(mine), "bytes": first["bytes"],
            "numbers": first["numbers"], "noise": first["noise"], "candidates": first["candidates"], **figures,
        })  # fmt: skip
    return sorted(lines, key=lambda line: (_place(line["way"]), line["steps"], line["records"]))


def _figure(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return fmean(known), stdev(known) / len(known) ** 0.5 if len(known) > 1 else 0.0


def _place(way: str) -> tuple[int, str]:
    names = list(WAYS)
    return (names.index(way) if way in names else len(names), way)
