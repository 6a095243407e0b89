"""The device that a model computes on, by the name that a person gives it."""

from __future__ import annotations

import os

import torch

from edgetune.core.errors import ConfigError

AUTO = "auto"
VARIABLE = "EDGETUNE_DEVICE"
"""Names the device that `auto` stands for, where a whole machine shall use another one."""


def find_device(name: str) -> torch.device:
    """Return the torch device of a name, if this machine has it.

    Args:
        name: auto, cpu, cuda, cuda:N or mps. `auto` is what EDGETUNE_DEVICE names, else a CUDA GPU if torch sees one,
            else the CPU: Apple's GPUs have not been measured, and are taken only by name.

    Raises:
        ConfigError: if there is no such device here, saying which there are.
    """
    present = devices_here()
    if name == AUTO:
        name = os.environ.get(VARIABLE) or (present[-1] if present[-1].startswith("cuda") else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"no device {name!r}", where=VARIABLE, hint=f"one of {', '.join(present)}"
        ) from error
    if device.type not in {one.partition(":")[0] for one in present} or (
        device.index is not None and name not in present
    ):
        raise ConfigError(
            f"this machine has no device {name}",
            where="model.device",
            hint=f"one of auto, {', '.join(present)}",
        )
    return device


def devices_here() -> list[str]:
    """Return the devices of this machine: cpu, mps if there is one, then GPUs from the last to the first."""
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.append("mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return found + [f"cuda:{index}" for index in reversed(range(count))]
