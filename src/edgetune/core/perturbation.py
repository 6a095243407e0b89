"""What forward passes read at the moment: one point of a line, or several with a share of the batch each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


class NotStackableError(Exception):
    """A module got an argument whose halves cannot be told apart; the points are then evaluated one by one."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What forward passes read at the moment.

    Args:
        seed: the direction.
        scales: one factor a point; of several points the batch holds the records one after the other, in that order.
        records: records of one point.
        seeds: the direction of every point, where they differ.
    """

    seed: int
    scales: tuple[float, ...]
    records: int = 0
    seeds: tuple[int, ...] = ()

    def only(self, point: int) -> Perturbation:
        """Return the perturbation of one point."""
        return Perturbation(self.seeds[point] if self.seeds else self.seed, (self.scales[point],))

    def part(self, value: Any, point: int) -> Any:
        """Return one point's share of an argument; what is the same for all records is not cut."""
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] == 1:
            return value
        self.check(value)
        return value.chunk(len(self.scales))[point]

    def check(self, value: torch.Tensor) -> None:
        """Refuse a tensor that is not cut into one equal share a point.

        Raises:
            NotStackableError: saying its shape.
        """
        if len(self.scales) > 1 and value.shape[0] % (len(self.scales) * self.records):
            raise NotStackableError(f"an argument of shape {tuple(value.shape)}")

    def join(self, values: list[Any]) -> torch.Tensor:
        """Put the outputs of both points together again."""
        if not all(isinstance(value, torch.Tensor) for value in values):
            raise NotStackableError("an output that is not a tensor")
        if values[0].shape[0] == 1 and self.records > 1:
            values = [value.expand(self.records, *value.shape[1:]) for value in values]
        return torch.cat(values)


UNPERTURBED = Perturbation(0, (0.0,))
"""One point, at the weights themselves."""
