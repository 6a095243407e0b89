"""How many processes the devices of a round train in: what cores, memory and the expected work allow."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.events import Listener
from edgetune.federation.crew import Crew
from edgetune.federation.opening import opening_of, share_of
from edgetune.measure.machine import resident_bytes, usable_cores, usable_memory
from edgetune.recipe.asking import asked_devices
from edgetune.recipe.prepare import Prepared

OPERATIONS = 2e10
"""Floating-point operations that a core does in a second, roughly: only whether workers pay depends on it."""
WORTH = 20.0
"""Seconds of work in one process from which a second one pays for its start."""
SHARE = 0.5
"""Part of the usable memory that worker processes may take."""


def open_crew(prepared: Prepared, *, rounds: int, scratch: Path, listener: Listener) -> Crew:
    """Return the processes that devices answer in; entered, it starts them.

    Args:
        prepared: what the run works on.
        rounds: rounds still to be done; 0 if no device is asked.
        scratch: folder for what is set aside on disk.
        listener: told of workers that were lost.

    Raises:
        ConfigError: as `choose_workers`.
    """
    return Crew(
        choose_workers(prepared, rounds) - 1,
        opening_of(prepared, scratch),
        partial(share_of, prepared.devices),
        listener=listener,
    )


def choose_workers(prepared: Prepared, rounds: int) -> int:
    """Return the number of processes, this one included; the bits do not depend on it.

        min(cores / threads, devices of a round, 1 + half of the usable memory / this process's memory)

    and 1 where the work is expected to take less than WORTH seconds, or the model is not on the CPU. A number that the
    recipe names is taken as far as a round has devices.

    Args:
        prepared: what the run works on; its model is loaded.
        rounds: rounds still to be done.

    Raises:
        ConfigError: if the recipe names a number whose models take more than half of the usable memory.
    """
    federation = prepared.recipe.federation
    asked = asked_devices(len(prepared.devices), federation.participation)
    own, free = resident_bytes(), usable_memory()
    affordable = 1 + int(SHARE * free / own)
    if prepared.backbone.model.device.type != "cpu" or not rounds:
        return 1
    if federation.workers:
        wanted = min(federation.workers, asked)
        if wanted > affordable:
            raise ConfigError(
                f"{wanted} processes need about {own * (wanted - 1):,} bytes more, "
                f"which is over half of the {free:,} that are free",
                where="federation.workers",
                hint=f"use at most {affordable}, or 0 to let edgetune choose",
            )
        return wanted
    if expected_seconds(prepared, rounds * asked) < WORTH:
        return 1
    return max(1, min(usable_cores() // torch.get_num_threads(), asked, affordable))


def expected_seconds(prepared: Prepared, answers: int) -> float:
    """Return roughly how long so many devices' answers take one core."""
    shares = [example for share in prepared.devices.values() for example in share]
    tokens = sum(len(example.input_ids) for example in shares) / max(1, len(shares))
    weights = sum(weight.numel() for weight in prepared.backbone.model.parameters())
    method = prepared.method
    step = 2.0 * weights * tokens * method.batch_size * method.estimate.passes
    return answers * method.local_steps * step / OPERATIONS
