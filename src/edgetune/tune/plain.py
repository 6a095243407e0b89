"""From a handle to a model that transformers knows, tuned or as it was."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from edgetune.core.in_parts import InParts
from edgetune.core.tuned import Tuned
from edgetune.tune.dense import DenseTuned
from edgetune.tune.formed import FormedTuned
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
    """Take the handle off its model, which is the base again, bit by bit; the handle ends here.

    A model that was opened without its matrices is without them again.
    """
    if isinstance(tuned, FormedTuned):
        tuned.release()
        return
    tuned.reset(None)
    if isinstance(tuned, ProjectedTuned):
        tuned.close()
    if isinstance(tuned, DenseTuned | ProjectedAdapter):
        tuned.remove()


def parts_of(tuned: Tuned) -> Iterator[tuple[str, torch.Tensor | InParts]]:
    """Yield the present weights by name: as they are where a handle stores them, else in parts."""
    yield from tuned.named_parts() if isinstance(tuned, FormedTuned) else tuned.named_weights()
