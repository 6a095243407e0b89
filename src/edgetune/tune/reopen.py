"""From what a ledger says of its tensors to the handle that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.tuned import Space
from edgetune.tune.bottleneck import Adapter
from edgetune.tune.dense import DenseTuned
from edgetune.tune.own import BitFit, LinearLayers, Writers
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.target import Placing
from edgetune.tune.targets import FullProjected, Lora, Prefix

PLACED: dict[str, type[Placing]] = {
    "LORA": Lora,
    "PREFIX_TUNING": Prefix,
    "BOTTLENECK": Adapter,
    "BITFIT": BitFit,
    "LINEAR": LinearLayers,
    "WRITERS": Writers,
    "FULL": FullProjected,
}
"""Targets by what a ledger calls them."""
OWN = frozenset({"BITFIT", "FULL", "LINEAR", "WRITERS"})
"""Those that are weights of the model: they begin where the base is, whatever the seed."""


def merges(adapter: Mapping[str, Any] | None) -> bool:
    """Say whether what a ledger holds can become a change of the model's own weights, so that a file can hold it."""
    kind = (adapter or {}).get("peft_type")
    return kind not in {name for name, one in PLACED.items() if not one().merges}


def reopen(
    model: PreTrainedModel,
    space: Space | None,
    adapter: Mapping[str, Any],
    base: Mapping[str, torch.Tensor] | None = None,
) -> DenseTuned | ProjectedTuned:
    """Return the handle that a ledger's adapter configuration describes.

    Args:
        model: the base, which becomes the tuned model.
        space: the directions; None for dense tensors.
        adapter: as `Placed.configuration` says it.
        base: the stored weights, where they are not to be copied.

    Raises:
        ModelError: if the configuration is of no known adapter, or lacks a setting.
    """
    kind = adapter.get("peft_type")
    if kind not in PLACED:
        raise ModelError(f"no adapter of the kind {kind!r} can be rebuilt", hint="update edgetune")
    if space is not None and kind not in OWN and "seed" not in adapter:
        raise ModelError("the ledger's adapter lacks the setting 'seed'")
    try:
        target = PLACED[kind].described(adapter)
    except KeyError as error:
        raise ModelError(f"the ledger's adapter lacks the setting {error}") from error
    return target.open(model, space, int(adapter.get("seed", 0)), base)
