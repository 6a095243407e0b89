"""The tuned handle of forward-only tuning of an adapter: directions over its tensors, the base untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from edgetune.core.tuned import Space
from edgetune.tune.placement import configuration, remove_adapter, trainable
from edgetune.tune.projected import ProjectedTuned


class ProjectedAdapter(ProjectedTuned):
    """A model with an adapter whose tensors are their initial values and a sum of directions.

        adapter = initial values of the seed + sum_i c_i z_i

    The initial values are the seed's, so that a ledger of coefficients and the base rebuild the adapter.

    Args:
        placed: a model of `placement.place_lora` or `placement.place_prefix`.
        space: the directions, over the adapter's tensor names.
        initial: what the initial values follow from, their `seed` and settings that peft's configuration lacks.

    Raises:
        ModelError: as `ProjectedTuned`.
    Cost: a copy of the adapter's tensors, and scratch for one of them.
    """

    def __init__(self, placed: Any, space: Space, initial: Mapping[str, float]) -> None:
        weights = trainable(placed)
        for weight in weights.values():
            weight.requires_grad_(False)
        super().__init__(placed, space, weights=weights)
        self._placed, self._initial = placed, dict(initial)

    def adapter(self) -> dict[str, Any] | None:
        """Return the peft configuration as plain JSON values, and what the initial values follow from."""
        return {**configuration(self._placed), **self._initial}

    def plain(self) -> PreTrainedModel:
        """Fold the adapter into the base weights if it is LoRA, else return peft's model; the handle ends here."""
        self.close()
        merges = hasattr(self._placed.base_model, "merge_and_unload")
        model: PreTrainedModel = self._placed.merge_and_unload() if merges else self._placed
        return model

    def remove(self) -> None:
        """Take the adapter off the base model; the handle ends here."""
        remove_adapter(self._placed)
