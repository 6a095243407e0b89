"""Does a better start make federated LoRA as good as tuning all weights? By initialiser and unevenness of the data."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.bench.cells import Cell, Row
from edgetune.bench.federation import WORK, settings_of, spread
from edgetune.models.embedded import EMBEDDED

LORA, WHOLE = "fedit", "fedavg"
FULL = "full"
"""What the rows of the yardstick say in place of an initialiser."""
NAMES = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga")
RATES = {"pissa": 1e-3, "olora": 1e-3, "lora_ga": 1e-3}
"""Learning rates on the embedded model where the recipe's is too large: factors that begin large move the weights more
for the same step of AdamW. Found among 1e-3 and 3e-3 by the held-out loss of seed 0 after four rounds at alpha 0.5."""
ALPHAS = (0.1, 0.5, 5.0)
"""Concentrations of the Dirichlet split: small ones are uneven."""


def cells_of(
    seeds: int,
    *,
    names: Sequence[str] = NAMES,
    model: str = EMBEDDED,
    data: str | None = None,
    work: int = WORK,
) -> list[Cell]:
    """Return the runs: averaged LoRA from every start, and averaged weights, with equal work of a device.

    On the embedded model both take the learning rates of their packaged recipes, but for the starts in `RATES`; on
    another model every run finds its own.

    Args:
        seeds: repeats.
        names: initialisers.
        model: embedded, or a folder.
        data: that model's records, with categories.
        work: forward passes of a record that a device does in all, a backward pass counting as two.
    """
    return [
        _cell(name, model, data, alpha, seed, work)
        for alpha in ALPHAS
        for name in (FULL, *names)
        for seed in range(seeds)
    ]


def _cell(name: str, model: str, data: str | None, alpha: float, seed: int, work: int) -> Cell:
    """Return a run; its name, by which a row is known again, says rate and work as well."""
    settings = _settings(name, model, alpha, work)
    told = {"alpha": alpha, "initialiser": name, "work": work}
    rate = settings.get("method.learning_rate")
    told |= {} if rate is None else {"rate": rate}
    return Cell("initialisers", model, WHOLE if name == FULL else LORA, seed, settings, data, told)


def _settings(name: str, model: str, alpha: float, work: int) -> dict[str, object]:
    chosen: dict[str, object] = {} if name == FULL else {"method.initialiser": name}
    if model == EMBEDDED and name in RATES:
        chosen["method.learning_rate"] = RATES[name]
    said = settings_of(WHOLE if name == FULL else LORA, model, work)
    return {**said, **chosen, "split.kind": "dirichlet", "split.alpha": alpha}


def of(rows: Sequence[Row], name: str, alpha: float) -> list[Row]:
    """Return the rows of an initialiser at a concentration."""
    return [row for row in rows if row["initialiser"] == name and row["alpha"] == alpha]


def behind(rows: Sequence[Row], name: str, alpha: float) -> tuple[float, float]:
    """Return how much higher the held-out loss is than that of tuning all weights, and the standard error of that.

    Runs of a seed share split and evaluation, so that their differences count:

        mean_i (l_i - f_i),   std_i (l_i - f_i) / sqrt(n)

    The error is infinite for one seed.
    """
    full = {row["seed"]: row["loss"] for row in of(rows, FULL, alpha)}
    pairs = [{"loss": row["loss"] - full[row["seed"]]} for row in of(rows, name, alpha)]
    mean, deviation = spread(pairs, "loss")
    return mean, deviation / len(pairs) ** 0.5 if len(pairs) > 1 else float("inf")


def verdict(rows: Sequence[Row]) -> str:
    """Say in one sentence which starts are as good as tuning all weights: at most one standard error behind it."""
    names = [name for name in dict.fromkeys(row["initialiser"] for row in rows) if name != FULL]
    alphas = list(dict.fromkeys(row["alpha"] for row in rows))
    if len(of(rows, FULL, alphas[0])) < 2:
        return "One seed has no standard error, so that nothing follows from it."
    said = []
    for alpha in alphas:
        found = {name: behind(rows, name, alpha) for name in names}
        equal = [name for name, (mean, error) in found.items() if mean <= error]
        best = min(found, key=lambda name: found[name][0])
        closest = f"{best} is closest, {found[best][0]:+.4f} ± {found[best][1]:.4f} nats"
        said.append(f"at alpha {alpha:g} {' and '.join(equal) or 'none'} ({closest})")
    return f"As good as tuning all weights, within a standard error of the difference: {'; '.join(said)}."
