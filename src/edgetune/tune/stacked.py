"""Points of any lines in one forward pass: every module computes for all of them, and the base is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from edgetune.core.batch import Batch, Objective, RecordLosses, mean_losses, response_loss, response_losses
from edgetune.core.moves import Moves
from edgetune.core.perturbation import NotStackableError, Perturbation
from edgetune.core.tuned import Slopes, Space
from edgetune.tune.moved import attach_moved
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.readers import Reader
from edgetune.tune.walk import one_walk

TOGETHER = 512
"""Tokens up to which points share a forward pass: beyond, products of a matrix gain little by more rows."""


class StackedTuned(ProjectedTuned):
    """A model tuned along directions of rank one, at any number of points at once, each along a direction of its own.

        y = W x + s u (v . x) at a perturbed point,   W <- W + c u v^T at a step

    No perturbed weight is formed. The model's own weights take the steps, and no others exist.

    Args:
        model: as for `ProjectedTuned`.
        space: directions of rank one.
        moves: what is added.
        base, weights, scales: as for `ProjectedTuned`.

    Raises:
        ModelError: if two parameters share a direction id.
    Cost: one pass over the weights a step; a second copy of them if no base is given.
    """

    def __init__(
        self,
        model: nn.Module,
        space: Space,
        moves: Moves,
        *,
        base: Mapping[str, torch.Tensor] | None = None,
        weights: Mapping[str, nn.Parameter] | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.moves = moves
        super().__init__(model, space, base=base, weights=weights, scales=scales)

    def _attached(self, model: nn.Module) -> Iterator[Reader]:
        weights = self._weights.parameters
        return attach_moved(self, model, weights, self._plain, set(weights))

    def _plain(self, module: nn.Module, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return what computes with the base in a module's place; None if the module holds it."""
        return None

    @property
    def seen(self) -> Slopes | None:
        """What takes slopes from a backward pass; None where none is under way."""
        return None

    @property
    def alignment(self) -> int:
        """0: what is formed at all is formed whole."""
        return 0

    @property
    def hidden(self) -> Mapping[str, torch.Tensor]:
        """Parameters that hold NaN at the moment: what they held, by name."""
        return self._weights.hidden

    def points(self, name: str, now: Perturbation) -> torch.Tensor:
        """Return a small parameter at all points, [points, ...]."""
        value = self._weights.value(name)
        moved = self.moves.vectors(name, value.numel(), now, value.device).view(-1, *value.shape)
        return moved.add_(value.float()).to(value.dtype)

    @torch.no_grad()
    def losses(self, objective: Objective, batch: Batch, seed: int, scales: Sequence[float]) -> list[float]:
        """Evaluate an objective at several points of one line; see `ProjectedTuned.losses`."""
        if objective is response_loss:
            return mean_losses(*self.line_losses(batch, [(seed, scale) for scale in scales]))
        return super().losses(objective, batch, seed, scales)

    @torch.no_grad()
    def record_losses(
        self, losses: RecordLosses, batch: Batch, seed: int, scales: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate every record at several points of one line.

        Returns:
            float32 [points, records] sums and int64 [records] counts.
        """
        if losses is response_losses:
            return self.line_losses(batch, [(seed, scale) for scale in scales])
        return super().record_losses(losses, batch, seed, scales)

    @torch.no_grad()
    def line_losses(
        self, batch: Batch, points: Sequence[tuple[int, float]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate the response loss of every record at points of several lines.

            L_b(w + s_p z(k_p)) for every point (k_p, s_p)

        Returns:
            float32 [points, records] sums and int64 [records] counts.
        Cost: a forward pass a point; as many together as make `TOGETHER` tokens.
        """
        each, found = self._together(batch) or 1, []
        for first in range(0, len(points), each):
            seeds, scales = zip(*points[first : first + each], strict=True)
            apart = seeds if len(set(seeds)) > 1 else ()
            walked = self._walk(batch, Perturbation(seeds[0], scales, len(batch.input_ids), apart))
            if walked is None:
                return self.line_losses(batch, points)
            found.append(walked)
        return torch.cat([sums for sums, _ in found]), found[0][1]

    @torch.no_grad()
    def own_line_losses(
        self, batch: Batch, seeds: Sequence[int], scales: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate the response loss of every record along a direction of its own.

            L_b(w + s z(k_b)) for every scale s and record b

        Args:
            batch: the records.
            seeds: k_b, one a record.
            scales: signed, in units of the weights.

        Returns:
            float32 [scales, records] sums and int64 [records] counts.
        Cost: a forward pass of the batch for every scale, all together up to `TOGETHER` tokens; one a record where a
            model mixes its records.
        """
        each = self._together(batch)
        if not each:
            alone = zip(batch.split(1), seeds, strict=True)
            found = [self.line_losses(one, [(seed, scale) for scale in scales]) for one, seed in alone]
            return torch.cat([sums for sums, _ in found], 1), torch.cat([counts for _, counts in found])
        parts = []
        for first in range(0, len(scales), each):
            some = scales[first : first + each]
            spread = tuple(scale for scale in some for _ in seeds)
            walked = self._walk(batch, Perturbation(seeds[0], spread, 1, tuple(seeds) * len(some)))
            if walked is None:
                return self.own_line_losses(batch, seeds, scales)
            parts.append(walked)
        return torch.cat([sums for sums, _ in parts]), parts[0][1]

    def _together(self, batch: Batch) -> int:
        """Return how many points share a forward pass; 0 if the model mixes its records."""
        return max(1, TOGETHER // max(1, batch.input_ids.numel())) if self.inspect() else 0

    def _walk(self, batch: Batch, now: Perturbation) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return sums and counts; None if the points turn out not to be told apart, as they are not from then on."""
        self._weights.recover()
        try:
            return one_walk(self, self._model, batch, now)
        except NotStackableError:
            self._stacks = False
            return None
