"""Whether a model and the type of its weights let a run's perturbations and steps through: before it, and during."""

from __future__ import annotations

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.events import Precision
from edgetune.core.keys import pool_key
from edgetune.core.tuned import Adds, Tuned
from edgetune.core.update import Projected, Update
from edgetune.directions.space import BoundSpace
from edgetune.measure.realised import Intended, Part, realised_perturbation, realised_update, sample_weights
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone
from edgetune.models.stored import weight_parts
from edgetune.recipe.computing import computing
from edgetune.tune import FullProjected, ProjectedTuned, parts_of, projected
from edgetune.tune.scaled import ScaledSpace

LEAST = 0.5
"""Realised ratio below which a setting is called useless."""
GOOD = 0.9
"""Realised ratio that the advice aims at."""


def check_precision(
    backbone: Backbone, method: TuningMethod, seed: int, *, accept: bool = False
) -> Precision | None:
    """Measure, before a run, how much of its perturbation the weights' type lets through.

    Args:
        backbone: the base model in the type of the run.
        method: what is tuned and how.
        seed: master seed of the directions.
        accept: go on whatever the ratio is.

    Returns:
        The measurement for the log; None for methods that perturb nothing.

    Raises:
        ConfigError: if the realised ratio is below 0.5, with a radius that works and the wider type.
    Cost: three draws of a sample of 2^18 weights; more only for the advice of a refusal.
    """
    eps = method.eps
    if eps is None or method.directions is None:
        return None
    space = BoundSpace(method.directions.kind, pool_key(seed))
    sample = sample_weights(weight_parts(backbone.model, backbone.base))
    ratio = realised_perturbation(space, sample, eps, 0)
    found = Precision(_name(backbone.dtype), eps, ratio)
    if ratio >= LEAST or accept:
        return found
    advice = f"--set method.eps={least_radius(space, sample, eps):.1g}"
    if backbone.dtype != torch.float32:
        advice += ", --set model.dtype=float32"
    raise ConfigError(
        f"only {100 * ratio:.0f} % of a perturbation of {eps:g} survives rounding to {found.dtype}, "
        "so the slopes would be noise",
        where="method.eps",
        hint=f"try {advice}, or go on all the same with --set model.accept_rounding=true",
    )


def check_reads(backbone: Backbone, method: TuningMethod) -> None:
    """Refuse, before a run, a model some of whose weights cannot be perturbed when they are read.

    Args:
        backbone: the base model, as it was afterwards.
        method: what is tuned and how.

    Raises:
        ModelError: naming the weights.
    Cost: a few forward passes of 21 tokens.
    """
    if method.directions is None or not isinstance(method.target, FullProjected):
        return
    if backbone.base is not None:
        with computing(backbone, method):
            return  # a handle over a base of its own asks at once
    tuned = projected(backbone.model, BoundSpace(method.directions.kind, pool_key(0)), {})
    try:
        tuned.inspect()
    finally:
        tuned.close()


def least_radius(space: BoundSpace, sample: list[Part], eps: float) -> float:
    """Return the first of eps, 2 eps, 4 eps, ... of which at least 90 % survives rounding, up to 1."""
    while eps < 1 and realised_perturbation(space, sample, eps, 0) < GOOD:
        eps *= 2
    return eps


class UpdateWatch:
    """Says how much of the ledger has reached half-precision weights.

    Such weights are formed from base and ledger and rounded once, so that nothing is lost for good; but until the sum
    of the steps exceeds half a unit in the last place of a weight, the forward pass does not see it.
    A base that is stored wider than the weights dithers the rounding: small steps then show on average, as rare jumps.

    Args:
        tuned: the handle at its base.
        method: what is tuned and how.
        seed: master seed of the directions.
    Cost: two copies of 2^18 weights; a ratio replays what is new in the ledger on them. Nothing in float32.
    """

    def __init__(self, tuned: Tuned, method: TuningMethod, seed: int) -> None:
        self._tuned = tuned
        narrow = any(weight.dtype != torch.float32 for _, weight in parts_of(tuned))
        self._space: Adds | None = None
        if narrow and method.directions is not None:
            pooled = method.directions.size > 0
            space = BoundSpace(method.directions.kind, pool_key(seed), pooled=pooled)
            scales = tuned.scales if isinstance(tuned, ProjectedTuned) else {}
            self._space = ScaledSpace(space, scales)
            self._before = sample_weights(parts_of(tuned))
            self._intended = Intended(self._space, self._before)

    def ratio(self, state: Update) -> float | None:
        """Return the realised ratio of everything since the base; None in float32 and for dense updates.

        Args:
            state: what the handle stands at.
        """
        if self._space is None or not isinstance(state, Projected):
            return None
        after = sample_weights(parts_of(self._tuned))
        return realised_update(self._before, after, self._intended.form(state))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
