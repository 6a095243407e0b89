"""Buffered asynchronous aggregation: a server steps once it has so many replies, each weighted by its staleness."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgetune.core.errors import ConfigError
from edgetune.core.update import Contribution, Dense
from edgetune.federation.messages import KEPT


@dataclass(frozen=True, slots=True)
class Buffer:
    """How many replies a step takes, and what late ones count.

        update = sum_c p_c s(t_c) update_c,   s(t) = (1 + t)^-power,   p_c = n_c / sum n over the buffer

    t is the number of steps that the server took between the state which a reply was made from and the one that it
    changes. As published, the weights are not brought to the sum 1 again: a step of stale replies is shorter. Rounds
    are the server's steps; devices are asked when it steps, not in between, as long as no more than the asked share of
    them are under way.

    Args:
        size: replies that a step takes, at least 1.
        power: exponent of the discount, at least 0; 0 for none.
        oldest: greatest t of a reply that counts, 0 to 8.

    Raises:
        ConfigError: if one is outside.
    Source: Nguyen et al. 2022, arXiv:2106.06639 (FedBuff; power 1/2 there).
    """

    size: int
    power: float = 0.5
    oldest: int = KEPT

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.power < float("inf") or not 0 <= self.oldest <= KEPT:
            raise ConfigError(
                f"a buffer needs at least one reply, a power of at least 0 and a staleness of at most {KEPT}, "
                f"not {self.size}, {self.power}, {self.oldest}"
            )

    def weight(self, age: int) -> float:
        """Return s of a staleness, in (0, 1]."""
        return float((1 + age) ** -self.power)

    def discounted(self, content: Contribution, age: int) -> Contribution:
        """Return a contribution with its change times s; the same bits where s is 1."""
        factor, update = self.weight(age), content.update
        if factor == 1.0:
            return content
        if isinstance(update, Dense):
            scaled = {name: tensor * factor for name, tensor in update.tensors.items()}
            return replace(content, update=Dense(scaled))
        return replace(content, update=update.scaled(factor))
