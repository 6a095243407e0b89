"""The generalised Jensen-Shannon divergence: how far a student's next-token distribution is from its teacher's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edgetune.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class JensenShannon:
    """Generalised Jensen-Shannon divergence between a teacher P and a student Q, with both Kullback-Leibler ends.

        D(P, Q) = beta KL(P || M) + (1 - beta) KL(Q || M),   M = beta P + (1 - beta) Q
        beta = 0: KL(P || Q), forward, covers modes;   beta = 1: KL(Q || P), reverse, seeks them

    Near an end D is beta (or 1 - beta) times the divergence at that end, so that losses of different beta are of
    different size. `normalise` divides D by beta (1 - beta), of which both ends are the limits.

    Args:
        beta: 0 to 1.
        normalise: divide by beta (1 - beta).

    Raises:
        ConfigError: if beta is out of range.
    Source: Agarwal et al. 2024, arXiv:2306.13649, equation 1. TRL's GKD takes the ends for the same special cases, and
        has no normalisation.
    """

    beta: float = 0.5
    normalise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta is between 0 (forward) and 1 (reverse), not {self.beta}", where="beta")

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the divergence at every position, in nats.

        Args:
            student: log-probabilities of Q, float [tokens, outcomes].
            teacher: log-probabilities of P, of the same shape and type.

        Returns:
            [tokens], of the same type.
        Cost: three copies of the arguments.
        """
        if self.beta == 0:
            return _kl(teacher, student)
        if self.beta == 1:
            return _kl(student, teacher)
        mixture = torch.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))
        found = self.beta * _kl(teacher, mixture) + (1 - self.beta) * _kl(student, mixture)
        return found / (self.beta * (1 - self.beta)) if self.normalise else found


def _kl(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return KL(left || right) of log-probabilities, summed over outcomes."""
    return (left.exp() * (left - right)).sum(-1)
