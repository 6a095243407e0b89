"""Which handle tunes all weights along directions: the one that pays least for the kind of direction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgetune.core.quantised import BaseTensor
from edgetune.core.tuned import Space
from edgetune.tune.folded import FoldedTuned
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.stacked import StackedTuned
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
    moves = space.moves(scales or {})
    if moves is None:
        return ProjectedTuned(model, space, base=base, scales=scales)
    if moves.sums:
        return FoldedTuned(model, space, moves, base, scales=scales)
    return StackedTuned(model, space, moves, base=base, scales=scales)


def streamed(model: nn.Module, space: Space, base: Mapping[str, BaseTensor]) -> ProjectedTuned:
    """Return the handle of a model over a base that is memory-mapped or packed, and never formed as a whole.

    Args:
        model: as for `StreamedTuned`.
        space: a pool that one transform sums.
        base: the base values of every parameter, as stored.

    Raises:
        ModelError: as the handles.
    """
    moves = space.moves({})
    if moves is not None and moves.sums:
        return FoldedTuned(model, space, moves, base, hold=False)
    return StreamedTuned(model, space, base)
