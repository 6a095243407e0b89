"""Quality at equal forward passes: each method at the best of its rates, chosen on a split of the training data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from edgetune.bench.cells import Row, in_process, run_cells
from edgetune.core.errors import ConfigError
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.embedded import EMBEDDED

BATCH = 4
"""Records a step, of every method."""
POINTS = 10
"""Losses of a run, at equal distances."""
DEVELOPMENT = 0.1
"""Of the training records, set aside to choose rates by."""
ROWS = "forwards.jsonl"
RANGE, CHOOSE, RUN = "range", "choose", "run"
"""Phases of a trial: the range test, a rate judged on the development records, the best one on held-out records."""
CHOSEN_BY = (1000, 1001)
"""Seeds of the runs by which rates are chosen, none of those that are measured; one alone takes a lucky rate."""
FACTORS = (1.0, 2.0, 4.0)
"""Rates that are tried first, in units of the range test's, which is cautious by a half."""
MOST = 8
"""Rates that are tried at most, unless asked for others: while the best is an end of
them, the next one beyond it."""
DOLLY = {
    "data.held_out_category": "summarization",
    "data.held_out": 64,
    "data.records": 1000,
    "data.max_tokens": 192,
}
"""Settings of records with categories, of a small model."""


@dataclass(frozen=True, slots=True)
class Way:
    """A method with its settings in the comparison.

    Args:
        method: public name.
        options: by their names in a recipe's [method] section; a learning_rate takes the place of the range test's.
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)


BASE, CEILING = "fedkseed", "lora"
"""What gains are measured from, and what by: forward passes along a pool, and back-propagation."""
WAYS: dict[str, Way] = {
    "mezo": Way("mezo"),
    BASE: Way("fedkseed"),
    "one-sided-7": Way("decomfl", {"directions_per_step": 7}),
    "fzoo": Way("fzoo"),
    "lozo": Way("lozo"),
    "subzero": Way("subzero"),
    "rank-one": Way("mezo", {"directions": "rank_one"}),
    "rank-one-pool": Way("fedkseed", {"directions": "rank_one_pool"}),
    "rank-one-7": Way("decomfl", {"directions_per_step": 7, "directions": "rank_one"}),
    "a-direction-a-record": Way(
        "mezo", {"directions": "rank_one", "estimate": "by_record", "directions_per_step": BATCH}
    ),
    "grzo": Way("grzo", {"directions_per_step": BATCH}),
    "fedskip": Way("fedskip"),
    "fedskip-hadamard": Way("fedskip", {"directions": "hadamard"}),
    "fedsubspace": Way("fedsubspace", {"recompute": False}),
    "fedsubspace-head": Way("fedsubspace", {"recompute": False, "tied_head": True}),
    "skipgrad": Way("skipgrad"),
    CEILING: Way("lora"),
}
"""What is compared, by name: a line more is a method more."""


@dataclass(frozen=True, slots=True)
class Task:
    """A model and its data.

    Args:
        model: embedded, or what `--model` takes.
        data: what `--data` takes; none for the embedded records.
    """

    model: str = EMBEDDED
    data: str | None = None

    @property
    def name(self) -> str:
        """Names it in tables and files."""
        return Path(self.model).name + (f"-{Path(self.data).stem}" if self.data else "")

    @property
    def settings(self) -> dict[str, object]:
        """Recipe keys of its data; only Dolly has a category to hold out."""
        if self.data is None:
            return {}
        others = {key: value for key, value in DOLLY.items() if key != "data.held_out_category"}
        return dict(DOLLY if "dolly" in self.name else others)


@dataclass(frozen=True, slots=True)
class Trial:
    """One process: a method, a rate, a seed.

    Args:
        task: name of the model and its data.
        model, data: as in `Task`.
        way: name in the table.
        method: public name.
        settings: recipe keys and their values, the rate among them but for the range test.
        work: forward passes of a record that it may do, a backward pass counting as two.
        phase: one of `RANGE`, `CHOOSE`, `RUN`.
        factor: the rate in units of the range test's.
        seed: of directions and batches.
    """

    task: str
    model: str
    data: str | None
    way: str
    method: str
    settings: Mapping[str, object]
    work: int
    phase: str
    factor: float = 1.0
    seed: int = CHOSEN_BY[0]

    @property
    def name(self) -> str:
        """Names it among all, by a digest of all that it says but the folders of model and data."""
        said = {key: value for key, value in asdict(self).items() if key not in ("model", "data")}
        digest = sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
        return f"forwards-{self.task}-{self.way}-{self.phase}-{self.factor:g}-{self.seed}-{digest}"


def variant(way: Way) -> TuningMethod:
    """Return the method of a way, refused where a device alone can do nothing with it or must not be looked at.

    Raises:
        ConfigError: saying why.
    """
    method = with_options(tuning_method(way.method), dict(way.options))
    method.check_alone()
    if method.private:
        raise ConfigError(
            f"{way.method} hides records, and a rate that is chosen by records would tell of them",
            where="--only",
            hint="edgetune bench federation compares it at rates that are given",
        )
    return method


def local_steps(trial: Trial) -> int:
    """Return the steps between two losses, as many as the work allows.

        steps = floor(work / (records a step x passes a step x losses)),   at least 1

    Args:
        trial: its settings say the method's passes.
    """
    said = {
        key.removeprefix("method."): value
        for key, value in trial.settings.items()
        if key.startswith("method.")
    }
    method = variant(Way(trial.method, said))
    return max(1, trial.work // (BATCH * method.estimate.passes * POINTS))


def ways_of(names: Sequence[str]) -> dict[str, Way]:
    """Return those that are asked for by their names here, a method's or that of a file with one; all if none is named.

    Raises:
        ConfigError: as `variant`.
    """
    found = {Path(name).stem: WAYS.get(name, Way(name)) for name in names} if names else WAYS
    for way in found.values():
        variant(way)
    return found


def compare(
    tasks: Sequence[Task],
    ways: Mapping[str, Way],
    seeds: int,
    work: int,
    out: Path,
    *,
    jobs: int,
    told: Callable[[Row], None],
    rates: int = MOST,
) -> None:
    """Run what is not done yet: the range tests, the rates, then the best of them on every seed.

    Args:
        tasks: models and their data.
        ways: from `ways_of`.
        seeds: repeats.
        work: as in `Trial`.
        out: folder of `forwards.jsonl`, which grows, and of the runs.
        jobs: processes side by side.
        told: called with every new row.
        rates: tried at most for each way; of 1 the range test's is taken as it is, which is what a user's run takes.

    Raises:
        DataError: after all others of a phase are done, if runs failed.
    """

    def run(trials: Sequence[Trial]) -> list[Row]:
        return run_cells(trials, out / ROWS, out / "runs", jobs=jobs, told=told, make=row_of)

    begun = [_begun(task, name, way, work) for task in tasks for name, way in ways.items()]
    found = run([trial for trial in begun if "method.learning_rate" not in trial.settings])
    starts = {row["cell"]: row for row in found}
    losses: dict[str, dict[float, float]] = {trial.name: {} for trial in begun}
    if rates == 1:
        losses = {trial.name: {FACTORS[0]: 0.0} for trial in begun}
    while wanted := [(one, factor) for one in begun for factor in next_factors(losses[one.name], rates)]:
        both = [(one, factor, seed) for one, factor in wanted for seed in CHOSEN_BY]
        rows = run([_rated(one, starts.get(one.name), factor, CHOOSE, seed) for one, factor, seed in both])
        for (one, factor, _), row in zip(both, rows, strict=True):
            loss = math.inf if row["loss"] is None else row["loss"]
            losses[one.name][factor] = losses[one.name].get(factor, 0.0) + loss / len(CHOSEN_BY)
    run([
        _rated(one, starts.get(one.name), best_of(losses[one.name]), RUN, seed)
        for seed in range(seeds) for one in begun
    ])  # fmt: skip


def best_of(losses: Mapping[float, float]) -> float:
    """Return the factor of the least loss, the smaller one of equals."""
    return min(losses, key=lambda factor: (losses[factor], factor))


def next_factors(losses: Mapping[float, float], most: int = MOST) -> tuple[float, ...]:
    """Return the rates to try next, in units of the range test's; none if the best of those tried has both neighbours.

    Args:
        losses: by factor, the mean over seeds; infinite where a run went astray.
        most: rates that are tried at most.
    """
    if not losses:
        return FACTORS[:most]
    best = best_of(losses)
    beyond = () if math.isinf(losses[best]) else (2 * best,)
    return tuple(one for one in (best / 2, *beyond) if one not in losses) if len(losses) < most else ()


def row_of(trial: Trial, out: Path) -> Row:
    """Run a trial in a process of its own and return its row.

    Raises:
        DataError: if it failed, with what it said.
    """
    said = asdict(trial)
    told = {key: said[key] for key in ("task", "way", "method", "work", "phase", "factor", "seed")}
    return {"cell": trial.name, **told, **in_process("edgetune.bench.forwarding", said, trial.name, out)}


def _begun(task: Task, name: str, way: Way, work: int) -> Trial:
    settings = {**task.settings, **{f"method.{key}": value for key, value in way.options.items()}}
    settings |= {"method.batch_size": BATCH, "method.micro_batch": 0}
    return Trial(task.name, task.model, task.data, name, way.method, settings, work, RANGE)


def _rated(begun: Trial, start: Row | None, factor: float, phase: str, seed: int) -> Trial:
    """Return a run at a multiple of the rate that the range test, or the way itself, begins with."""
    found = (
        {f"method.{key}": start[key] for key in ("learning_rate", "eps") if start[key] is not None}
        if start
        else {}
    )
    settings = {**found, **begun.settings}
    rate = float(f"{factor * float(str(settings['method.learning_rate'])):.3g}")
    settings["method.learning_rate"] = rate
    return Trial(**(asdict(begun) | {"settings": settings, "phase": phase, "factor": factor, "seed": seed}))
