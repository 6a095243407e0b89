"""The tuned handle of some of a model's matrices over a base that nothing writes to, and slopes along a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgetune.core.blank import is_blank
from edgetune.core.errors import ModelError
from edgetune.core.moves import Moves
from edgetune.core.quantised import BaseTensor
from edgetune.core.tuned import Slopes, Space
from edgetune.core.update import Projected
from edgetune.tune.folded import FoldedTuned
from edgetune.tune.moved import plain_matrices
from edgetune.tune.placed import Placed


class FoldedOwn(FoldedTuned):
    """Chosen matrices of a model along a pool of rank one; they, and all others, stay where they are stored.

        G_l = sum_t e_t x_t^T:   <G_l, z_k> for all k, from fold(e_t) and fold(x_t)

    The gradient of a matrix is a sum of outer products, and a pool of rank one sees each factor folded onto a side of
    its tile. So no gradient of a matrix is formed, and of what a layer is given only Q numbers a token are kept.

    Args:
        placed: the model and its chosen matrices.
        space: a pool of rank one.
        moves: what it adds.
        base: the base values of every parameter as stored; the model's own tensors if not given.
        hold: as for `FoldedTuned`.

    Raises:
        ModelError: as `FoldedTuned`, or if a module does more with its matrix than multiply by it or look rows up.
    Cost: beside a forward pass P + Q numbers a token and layer, of the head's error also its product with the head.
    """

    def __init__(
        self,
        placed: Placed,
        space: Space,
        moves: Moves,
        base: Mapping[str, BaseTensor] | None = None,
        *,
        hold: bool = True,
    ) -> None:
        model = placed.model
        blank = {name for name, one in model.named_parameters() if is_blank(one)}
        other = sorted((placed.weights.keys() | blank) - plain_matrices(model))
        if other:
            raise ModelError(
                "a module of this architecture does something of its own with its matrix",
                where=other[0],
                hint="use residency fused",
            )
        for weight in placed.weights.values():
            weight.requires_grad_(False)
        self._placed, self._seen = placed, list[Slopes]()
        super().__init__(model, space, moves, base, hold=hold, only=placed.weights.keys())

    @property
    def seen(self) -> Slopes | None:
        """What takes slopes from a backward pass; None where none is under way."""
        return self._seen[-1] if self._seen else None

    @contextmanager
    def slopes(self) -> Iterator[Callable[[], Projected]]:
        """While entered, errors that a backward pass brings to the chosen layers are seen along all of a pool.

        Returns:
            What returns the mean over the pool of the gradients so far, `(1 / K) sum_k <G, z_k> z_k`.

        Cost: P Q multiplications a token and layer.
        """
        found = self._directions.projection()
        self._seen.append(found)
        try:
            yield found.mean
        finally:
            self._seen.pop()

    def adapter(self) -> dict[str, Any] | None:
        """Return which tensors are tuned, as plain JSON values."""
        return self._placed.configuration()
