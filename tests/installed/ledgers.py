"""Ledgers as runs write them, of a few random steps: made by the tuned handles that runs use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetune.core.keys import key_id, pool_key
from edgetune.core.ledger import DirectionsSpec, Ledger, write_ledger
from edgetune.core.quantised import HELD
from edgetune.core.update import Dense, Projected
from edgetune.directions import KINDS as DIRECTIONS
from edgetune.directions import made_of
from edgetune.directions.space import BoundSpace
from edgetune.federation.residency import base_tensors, rounded_digest
from edgetune.models.backbone import load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.tune import (
    BitFit,
    FullProjected,
    LinearLayers,
    Lora,
    ProjectedTuned,
    StreamedTuned,
    Target,
    Writers,
)

KEY = pool_key(7)
POOL = DirectionsSpec("hadamard", 64, key_id(KEY), 7)
FRESH = DirectionsSpec("rademacher", 0, key_id(KEY), 7)
RANK_ONE = DirectionsSpec("rank_one", 0, key_id(KEY), 7)
RANK_ONE_POOL = DirectionsSpec("rank_one_pool", 64, key_id(KEY), 7)
WIDE_POOL = DirectionsSpec("rank_one_pool", 5000, key_id(KEY), 7)


@dataclass(frozen=True)
class Kind:
    """What a run tuned, and along what."""

    target: Target | None = None
    directions: DirectionsSpec | None = None
    scales: tuple[tuple[str, float], ...] = ()
    grid: str | None = None


KINDS = {
    "pool": Kind(directions=POOL),
    "fresh": Kind(directions=FRESH),
    "scaled": Kind(directions=POOL, scales=(("norm", 2.0), ("down_proj", 0.25))),
    "rounded": Kind(directions=POOL, grid="Q8_0"),
    "lora": Kind(Lora(4, 8.0)),
    "frozen_a": Kind(Lora(4, 8.0, freeze_a=True)),
    "mezo_lora": Kind(Lora(4, 8.0), FRESH),
    "bitfit": Kind(BitFit()),
    "mezo_bitfit": Kind(BitFit(), FRESH),
    "full": Kind(FullProjected()),
    "low": Kind(directions=RANK_ONE_POOL),
    "low_scaled": Kind(directions=RANK_ONE_POOL, scales=(("norm", 2.0), ("down_proj", 0.25), ("c_fc", 0.25))),
    "low_wide": Kind(directions=WIDE_POOL),
    "low_rounded": Kind(directions=RANK_ONE_POOL, grid="Q8_0"),
    "low_fresh": Kind(directions=RANK_ONE),
    "low_linear": Kind(LinearLayers(), RANK_ONE_POOL),
    "low_writers": Kind(Writers(), RANK_ONE_POOL),
    "low_bitfit": Kind(BitFit(), RANK_ONE_POOL),
}


def intervals(kind: Kind, size: float, seed: int) -> list[Projected]:
    """Random coefficients; a fresh direction moves in two intervals, as momentum makes it."""
    rng = np.random.default_rng(seed)
    pool = kind.directions is not None and kind.directions.size > 0
    keys = [range(64)] if pool else [(5, 9, 1, 77), (3, 9, 12)]
    return [
        Projected(np.array(one, np.int64), rng.normal(0, size, len(one)).astype(np.float32)) for one in keys
    ]


def make(
    path: Path, base: str | Path, name: str = "pool", *, size: float = 2e-3, seed: int = 0, **said: Any
) -> Path:
    """Write a ledger of a kind; `said` are fields of it."""
    kind, backbone = KINDS[name], load_backbone(base)
    space = None
    if kind.directions is not None:
        made = made_of(DIRECTIONS[kind.directions.kind], kind.directions.size)
        space = BoundSpace(made, KEY, pooled=bool(kind.directions.size))
    extra, digest = {}, backbone.digest
    scales = {
        name: next((c for part, c in kind.scales if part in name), 1.0)
        for name, _ in backbone.model.named_parameters()
    }
    tuned: Any
    if kind.grid is not None and space is not None:
        grid = HELD[kind.grid]
        tuned = StreamedTuned(backbone.model, space, base_tensors(backbone, grid))
        extra, digest = {"base_grid": kind.grid}, rounded_digest(digest, grid)
    elif kind.target is None and space is not None:
        tuned = ProjectedTuned(backbone.model, space, scales=scales if kind.scales else None)
        extra = {"layer_scale": json.dumps(scales)} if kind.scales else {}
    else:
        assert kind.target is not None
        tuned = kind.target.open(backbone.model, space, 3)
    if space is not None:
        for update in intervals(kind, size, seed):
            tuned.reset(tuned.state())
            tuned.apply(update)
    else:
        generator = torch.Generator().manual_seed(seed)
        noise = {n: size * torch.randn(one.shape, generator=generator) for n, one in tuned.named_weights()}
        tuned.apply(Dense(noise))
    fields = {"method": name, "run": "", "round": 1} | said
    ledger = Ledger(
        base_digest=digest,
        method=str(fields["method"]),
        update=tuned.state(),
        directions=kind.directions,
        adapter=tuned.adapter() if kind.target is not None else None,
        weights_digest=tensor_digest(tuned.named_weights()),
        round=int(fields["round"]),
        fingerprint=str(fields["run"]),
        extra=extra,
    )
    write_ledger(path, ledger)
    return path
