"""What happens to a model that is compressed, beside its matrices (`core.events.LayerCompressed`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgetune.core.events import Event


@dataclass(frozen=True, slots=True)
class Calibrated(Event):
    """What a compression is calibrated on."""

    kind: ClassVar[str] = "calibration"
    source: str
    """A file, `records` of the recipe that are not held out, or the server's own `sample` of them."""
    tokens: int
    sequences: int
    widest: int
    """Inputs of the widest layer: of fewer tokens its Hessian is singular, and damping makes up for the rest."""

    @property
    def few(self) -> bool:
        """Whether there are fewer tokens than inputs."""
        return self.tokens < self.widest
