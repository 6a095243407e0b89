"""A model that was opened without its matrices, made to compute with its base for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.directions.space import BoundSpace
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone
from edgetune.tune import release, streamed


@contextmanager
def computing(backbone: Backbone, method: TuningMethod) -> Iterator[PreTrainedModel]:
    """While entered, a model computes with its base, whether it holds that or not.

    Args:
        backbone: as loaded; no handle is on its model.
        method: one that can be streamed, where the model was opened without its matrices: the base is read as this
            method reads it.

    Raises:
        ModelError: if a matrix is read past its own module, so that the model has to hold it.
    Cost: none for a model that holds its weights; else a few forward passes of 21 tokens.
    """
    if backbone.base is None:
        yield backbone.model
        return
    if method.directions is None:
        raise ModelError(f"{method.name} needs a model that holds its weights", where=backbone.source)
    tuned = streamed(backbone.model, BoundSpace(method.directions.kind, pool_key(0)), backbone.base)
    try:
        yield cast(PreTrainedModel, tuned.model)
    finally:
        release(tuned)
