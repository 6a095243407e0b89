"""What happens to a model that is compressed, beside its matrices (`core.events.LayerCompressed`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgetune.core.events import Event


@dataclass(frozen=True, slots=True)
class Allotted(Event):
    """How a file is kept to its size."""

    kind: ClassVar[str] = "allotted"
    size: str
    """As it was asked for."""
    budget_bytes: int
    predicted_kl: float
    """Sum of what every matrix was measured to add on its grid, before anything is compensated."""
    grids: dict[str, int]
    """Grid to the number of matrices on it."""


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


@dataclass(frozen=True, slots=True)
class Pruned(Event):
    """Heads, channels or sub-modules were taken out of a model."""

    kind: ClassVar[str] = "pruned"
    ratio: float
    """Share of the weights of heads and channels that was to go."""
    width: str
    importance: str
    recover: str
    weights_before: int
    weights: int
    """All weights of the model, before and after."""
    kl: dict[str, float]
    """Step (pruned, compensated, recovered) to the mean KL of the predictions of held-out response tokens to those of
    the model before, nats."""
    loss: dict[str, float]
    """Step to the held-out loss, the model before as `dense`."""
    seconds: float
    base_digest: str = ""
    """Of the pruned model, where it is the base of what follows."""
