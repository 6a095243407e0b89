"""The survey's case study: FedKSeed over many devices, by the unevenness of their data and by the number of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.bench.cells import Cell, Row
from edgetune.bench.federation import HELD_OUT_CATEGORY, spread
from edgetune.models.embedded import EMBEDDED

METHOD = "fedkseed"


@dataclass(frozen=True, slots=True)
class Study:
    """How large a case study is.

    Args:
        devices: of the federation.
        participation: share of them asked in a round.
        rounds: of a run.
        steps: local iterations, one record each.
        seeds: K of the runs by unevenness.
        sizes: K of the runs by number of seeds.
        alphas: concentrations of the Dirichlet split; the runs by number of seeds take the first.
        learning_rate: None leaves it and eps to be found by each run.
        eps: perturbation radius.
        held_out: records that are evaluated.
    """

    devices: int
    participation: float
    rounds: int
    steps: int
    seeds: int
    sizes: tuple[int, ...]
    alphas: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5)
    learning_rate: float | None = None
    eps: float | None = None
    held_out: int = 100


PUBLISHED = Study(
    200, 0.05, 120, 200, 700, (128, 256, 512, 700, 1024, 2048, 4096), learning_rate=3e-7, eps=5e-4
)
"""Section III.D of arXiv:2408.10691; rate, radius and sizes are FedKSeed's, the survey states none."""
PROXY = Study(200, 0.05, 6, 200, 700, (4, 16, 64, 256, 700, 1024, 4096), held_out=64)
"""The same devices, shares and steps on a model of a million weights or fewer, with numbers of seeds small enough to
hurt, and a twentieth of the rounds, after which the loss still falls: a proxy, whose figures say nothing of a model of
a billion."""


def cells_of(study: Study, model: str, data: str | None, repeats: int) -> list[Cell]:
    """Return the runs of a study: by unevenness, then by number of seeds."""
    by_alpha = [(alpha, study.seeds) for alpha in study.alphas]
    by_size = [(study.alphas[0], size) for size in study.sizes]
    return [
        Cell(
            "case-study", model, METHOD, seed, _settings(study, model, alpha, size), data,
            {"alpha": alpha, "K": size},
        )
        for alpha, size in dict.fromkeys([*by_alpha, *by_size])
        for seed in range(repeats)
    ]  # fmt: skip


def _settings(study: Study, model: str, alpha: float, size: int) -> dict[str, object]:
    said: dict[str, object] = {
        "federation.devices": study.devices, "federation.participation": study.participation,
        "federation.rounds": study.rounds, "split.kind": "dirichlet", "split.alpha": alpha,
        "method.local_steps": study.steps, "method.batch_size": 1, "method.pool": size,
        "evaluation.every": max(1, study.rounds // 12), "data.held_out": study.held_out,
    }  # fmt: skip
    if study is PROXY:
        said["split.minimum"] = 1  # a thousand records of a proxy are few for two hundred devices
    if model != EMBEDDED:
        said |= {
            "data.held_out_category": HELD_OUT_CATEGORY,
            "data.max_tokens": 1024 if study is PUBLISHED else 128,
        }
    if study.learning_rate is not None:
        said |= {"method.learning_rate": study.learning_rate, "method.eps": study.eps}
    return said


def by_alpha(study: Study, rows: Sequence[Row]) -> dict[float, list[tuple[int, float, float]]]:
    """Return figure 4(a): by concentration, (round, mean held-out loss, standard deviation)."""
    found: dict[float, list[tuple[int, float, float]]] = {}
    for alpha in study.alphas:
        mine = [row for row in rows if row["alpha"] == alpha and row["K"] == study.seeds]
        curves = [[row["base_loss"], *row["losses"]] for row in mine]
        for round in range(study.rounds + 1):
            values = [
                {"loss": curve[round]} for curve in curves if len(curve) > round and curve[round] is not None
            ]
            if values:
                found.setdefault(alpha, []).append((round, *spread(values, "loss")))
    return found


def by_size(study: Study, rows: Sequence[Row], what: str = "rouge_l") -> list[tuple[int, float, float]]:
    """Return figure 4(b): (K, mean Rouge-L F1, standard deviation), or another column by K."""
    found = []
    for size in study.sizes:
        mine = [row for row in rows if row["K"] == size and row["alpha"] == study.alphas[0]]
        found += [(size, *spread(mine, what))] if mine else []
    return found


def verdict(study: Study, rows: Sequence[Row]) -> str:
    """Say in one sentence what the runs say of K: how far apart the means are, in standard errors."""
    points = by_size(study, rows, "loss")
    low, high = min(points, key=lambda one: one[1]), max(points, key=lambda one: one[1])
    repeats = sum(row["K"] == low[0] and row["alpha"] == study.alphas[0] for row in rows)
    error = ((low[2] ** 2 + high[2] ** 2) / max(1, repeats)) ** 0.5
    apart = (high[1] - low[1]) / error if error else float("inf")
    return (
        f"Held-out loss is lowest at K = {low[0]} ({low[1]:.4f}) and highest at K = {high[0]} ({high[1]:.4f}): "
        f"{apart:.1f} standard errors of their difference apart."
    )
