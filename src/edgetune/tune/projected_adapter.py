"""The tuned handle of forward-only tuning of a few tensors: directions over them, the base untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.core.tuned import Space
from edgetune.core.update import Projected
from edgetune.tune.placed import Placed
from edgetune.tune.projected import ProjectedTuned


class ProjectedAdapter(ProjectedTuned):
    """A model on which tensors were placed that are their initial values and a sum of directions.

        tensors = initial values of the seed + sum_i c_i z_i

    The initial values are the seed's or the base's, so that a ledger of coefficients and the base rebuild them.

    Args:
        placed: the model and its tuned tensors.
        space: the directions, over the tensors' names.
        base: the initial values where they are stored anyway; a copy if not given.

    Raises:
        ModelError: as `ProjectedTuned`.
    Cost: a copy of the tensors, and scratch for one of them.
    """

    def __init__(self, placed: Placed, space: Space, base: Mapping[str, torch.Tensor] | None = None) -> None:
        for weight in placed.weights.values():
            weight.requires_grad_(False)
        super().__init__(placed.model, space, base=base, weights=placed.weights)
        self._placed = placed

    @contextmanager
    def slopes(self) -> Iterator[Callable[[], Projected]]:
        """While entered, gradients that a backward pass brings to the tensors are taken along all of a pool.

        Returns:
            What returns the mean over the pool of the gradients so far, `(1 / K) sum_k <G, z_k> z_k`.

        Raises:
            ConfigError: if no transform sums the directions.
        Cost: one gradient at a time, and K numbers.
        """
        seen, weights = self._directions.projection(), self._weights.parameters
        hooks: list[Any] = []

        def taker(name: str) -> Callable[[torch.Tensor], None]:
            def take(weight: torch.Tensor) -> None:
                assert weight.grad is not None  # noqa: S101 - called once it has come
                seen.add(name, weight.grad)
                weight.grad = None

            return take

        try:
            for name, weight in weights.items():
                weight.requires_grad_(True)
                tensor: Any = weight
                hooks.append(tensor.register_post_accumulate_grad_hook(taker(name)))
            yield seen.mean
        finally:
            for hook in hooks:
                hook.remove()
            for weight in weights.values():
                weight.requires_grad_(False)

    def adapter(self) -> dict[str, Any] | None:
        """Return what was placed as plain JSON values, and what the initial values follow from."""
        return self._placed.configuration()

    def plain(self) -> PreTrainedModel:
        """Return the model with everything folded in that can be; the handle ends here."""
        self.close()
        return self._placed.plain()

    def remove(self) -> None:
        """Take everything off the base model; the handle ends here."""
        self._placed.remove()
