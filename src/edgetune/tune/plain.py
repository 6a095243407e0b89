"""From a handle to a model that transformers knows, tuned or as it was."""

from __future__ import annotations

from transformers import PreTrainedModel

from edgetune.core.tuned import Tuned
from edgetune.tune.dense import DenseTuned
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter


def plain_model(tuned: Tuned) -> PreTrainedModel:
    """Return the transformers model with the tuned weights in place, peft's for a prefix; the handle ends here."""
    if isinstance(tuned, DenseTuned):
        return tuned.merged()
    if isinstance(tuned, ProjectedAdapter):
        return tuned.plain()
    if isinstance(tuned, ProjectedTuned):
        tuned.close()
    model: PreTrainedModel = tuned.model  # type: ignore[assignment]
    return model


def release(tuned: Tuned) -> None:
    """Take the handle off its model, which is the base again, bit by bit; the handle ends here."""
    tuned.reset(None)
    if isinstance(tuned, ProjectedTuned):
        tuned.close()
    if isinstance(tuned, DenseTuned | ProjectedAdapter):
        tuned.remove()
