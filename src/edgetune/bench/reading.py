"""Which tensors or slopes of an upload are of a vocabulary's rows, and how they are read without any record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetune.bench.uploads import Sender, Upload
from edgetune.core.keys import pool_key
from edgetune.core.skips import head_of
from edgetune.core.update import Dense, Projected
from edgetune.directions import RankOnePool
from edgetune.directions.source import Source
from edgetune.estimators.pool_slopes import PoolSlopes
from edgetune.privacy.folded_rows import atoms, pursue
from edgetune.privacy.vocabulary_rows import rows_apart
from edgetune.recipe.prepare import Prepared

Scored = npt.NDArray[np.float64]


def reader_of(prepared: Prepared, sender: Sender, seed: int) -> Callable[[Upload], Scored] | None:
    """Return what scores tokens by an upload alone; None where nothing of it is of a vocabulary's rows.

    Args:
        prepared: the base, which everybody has.
        sender: of the uploads; opened before anything moved.
        seed: of the run's directions.
    """
    method, model = sender.method, prepared.backbone.model
    tuned = {name for name, _ in sender.worker.tuned.named_weights()}
    named = {id(one): name for name, one in model.named_parameters() if name in tuned}
    table: Any = model.get_input_embeddings()
    head: Any = head_of(model) or table
    if method.directions is None:
        name = named.get(id(table.weight)) or named.get(id(head.weight))
        return _dense(name) if name else None
    kind, name = method.directions.kind, named.get(id(head.weight))
    if not (name and isinstance(kind, RankOnePool) and isinstance(method.estimate, PoolSlopes)):
        return None
    source, cpu = Source(pool_key(seed)), torch.device("cpu")
    (tokens, hidden), (_, width) = head.weight.shape, kind.tile
    signs = kind.row_signs(source, name, tokens, cpu), kind.column_signs(source, name, hidden, cpu)
    return _slopes(kind, atoms(head.weight.detach().cpu(), *signs, width))


def _dense(name: str) -> Callable[[Upload], Scored]:
    def read(upload: Upload) -> Scored:
        if not isinstance(upload.update, Dense):
            raise TypeError("tensors are read here")
        return np.asarray(rows_apart(upload.update.tensors[name]).double().numpy())

    return read


def _slopes(kind: RankOnePool, rows: torch.Tensor) -> Callable[[Upload], Scored]:
    def read(upload: Upload) -> Scored:
        if not isinstance(upload.update, Projected):
            raise TypeError("slopes are read here")
        return np.asarray(pursue(kind.core(upload.update), rows).double().numpy())

    return read
