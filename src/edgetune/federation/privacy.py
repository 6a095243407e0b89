"""Before the first step of a private run: who hears of what how often, and what noise that takes and spends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgetune.core.errors import ConfigError
from edgetune.core.events import Privacy
from edgetune.federation.turns import Turns
from edgetune.methods.method import TuningMethod
from edgetune.privacy import Releases, noise_for, spent
from edgetune.recipe.asking import asked_for
from edgetune.recipe.open_settings import recipe_method, settled
from edgetune.recipe.prepare import Prepared

ROUNDING = 1e-9
"""Relative excess of an epsilon over its target that is no excess."""


def releases_of(
    method: TuningMethod, examples: Mapping[int, int], rounds: int, participation: float, seed: int
) -> list[Releases]:
    """Return what is heard of every device's records, or of the devices themselves.

    Records: a device that holds n of them releases every step of each round that asks it, of a batch that has each with
    probability min(1, b / n). Devices: every round that asks one. Which rounds do follows from the seed, which nobody
    keeps: there is no gain from the choice of devices.

    Args:
        method: a private one.
        examples: number of records by device.
        rounds, participation, seed: of the run; a single device that holds all takes part in every round.
    """
    protection = method.protection
    if protection is None:
        return []
    turns = Turns(list(examples), participation, seed=seed)
    asked = {device: turns.before(device, rounds + 1) for device in examples}
    if protection.unit == "device":
        return [Releases(1.0, count) for count in asked.values()]
    steps = method.local_steps * protection.releases
    return [
        Releases(min(1.0, method.batch_size / examples[device]), count * steps)
        for device, count in asked.items()
    ]


def protect(
    prepared: Prepared, *, single: bool, held: Mapping[int, int] | None = None
) -> tuple[Prepared, Privacy | None]:
    """Return what a run works on with its noise, and what all its rounds spend.

    A run that stops early has spent less. One that was killed and goes on repeats a round: whoever heard the devices'
    replies in it has heard of one round more than is counted.

    Args:
        prepared: model, data, method.
        single: one device holds all data.
        held: number of records by device; those that are prepared if not given.

    Raises:
        ConfigError: if the target cannot be met, or the noise that is named does not meet it, or nobody would add it.
        MissingExtraError: if dp-accounting is not installed.
    """
    method, recipe = prepared.method, prepared.recipe
    protection = method.protection
    if protection is None:
        return prepared, None
    if single and protection.unit == "device":
        raise ConfigError(
            "the noise that hides a device is the server's, and one device alone has none",
            where=f"method {method.name}",
            hint=f"edgetune federate {method.name}",
        )
    if held is None:
        held = {device: len(share) for device, share in prepared.devices.items()}
    held = {0: sum(held.values())} if single else held
    plan = recipe.federation
    participation = 1.0 if single else asked_for(len(held), plan.participation, plan.over_selection)
    told = releases_of(method, held, recipe.federation.rounds, participation, recipe.seed)
    if not protection.settled:
        noise = noise_for(protection.epsilon, told, protection.delta)
        recipe = settled(recipe, {"noise_multiplier": noise})
        prepared = replace(prepared, recipe=recipe, method=recipe_method(recipe))
        protection = prepared.method.protection or protection
    epsilon = spent(protection.noise_multiplier, told, protection.delta)
    if protection.epsilon and epsilon > protection.epsilon * (1 + ROUNDING):
        raise ConfigError(
            f"a noise multiplier of {protection.noise_multiplier:g} spends epsilon = {epsilon:.3g}, more than the "
            f"{protection.epsilon:g} that is wanted",
            where="method.noise_multiplier",
            hint="leave it out, and it is found; or set method.epsilon=0 for no target",
        )
    return prepared, Privacy(
        epsilon=epsilon,
        delta=protection.delta,
        noise_multiplier=protection.noise_multiplier,
        clip=protection.clip,
        releases=max(one.count for one in told),
        sampling_rate=max(one.rate for one in told),
        unit=protection.unit,
    )
