"""Which handle tunes all weights along directions: the one that pays least for the kind of direction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgetune.core.quantised import StoredTensor
from edgetune.core.tuned import Space
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.space import BoundSpace, KeptSpace
from edgetune.tune.folded import FoldedTuned
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.stacked import RankOneTuned
from edgetune.tune.streamed import StreamedTuned


def projected(
    model: nn.Module,
    space: Space,
    base: Mapping[str, torch.Tensor] | None = None,
    scales: Mapping[str, float] | None = None,
) -> ProjectedTuned:
    """Return the handle of a model all of whose weights are tuned along directions.

    Args:
        model: as for `ProjectedTuned`.
        space: the directions; those of rank one move activations, all others form weights where they are read.
        base: the base values by name, in floats.
        scales: layer-wise factors by name.

    Raises:
        ModelError: as the handles.
    """
    if isinstance(space, BoundSpace) and not isinstance(space, KeptSpace):
        if isinstance(space.kind, RankOnePool):
            return FoldedTuned(model, space, base, scales=scales)
        if isinstance(space.kind, RankOneKind):
            return RankOneTuned(model, space, base=base, scales=scales)
    return ProjectedTuned(model, space, base=base, scales=scales)


def streamed(model: nn.Module, space: BoundSpace, base: Mapping[str, StoredTensor]) -> ProjectedTuned:
    """Return the handle of a model over a base that is memory-mapped or packed, and never formed as a whole.

    Args:
        model: as for `StreamedTuned`.
        space: a pool that one transform sums.
        base: the base values of every parameter, as stored.

    Raises:
        ModelError: as the handles.
    """
    if isinstance(space.kind, RankOnePool):
        return FoldedTuned(model, space, base)
    return StreamedTuned(model, space, base)
