"""From a ledger to the change that it makes, with a model of which only names and shapes are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import DigestError, ModelError
from edgetune.core.ledger import Ledger
from edgetune.core.residual import A, B, misfit, pairs, residuals, side_by_side, trained
from edgetune.core.tuned import Adds
from edgetune.core.update import Dense, Projected
from edgetune.federation.load import scales_of, space_of
from edgetune.federation.residency import grid_named
from edgetune.federation.worker import BASE_GRID
from edgetune.installed.change import Change, LowRank, Replaced, Summed
from edgetune.models.digest import tensor_digest
from edgetune.tune import BitFit, LinearLayers, Writers, merges
from edgetune.tune.initial import uniform
from edgetune.tune.scaled import ScaledSpace
from edgetune.tune.target import Placing

PEFT = "base_model.model."
"""What peft puts before the names of a model's modules."""
SOME: Mapping[str, type[Placing]] = {"BITFIT": BitFit, "LINEAR": LinearLayers, "WRITERS": Writers}
"""Targets that are some of a model's own parameters, by what a ledger calls them."""


def change_of(
    ledger: Ledger, outline: PreTrainedModel, *, key: bytes | None = None, where: Path | None = None
) -> Change:
    """Return what a ledger does to the weights of a model.

    Args:
        ledger: what was learnt.
        outline: the model without values: names, shapes and kinds of its modules.
        key: 32 bytes, if the directions are under a secret key.
        where: the ledger's file, for errors.

    Raises:
        ModelError: if it is no change of weights (a prefix, a bottleneck adapter), its tensors are not this model's,
            or the key is missing.
        DigestError: if the key, or the trained tensors, are not those that the ledger names.
    """
    if not merges(ledger.adapter):
        kind = (ledger.adapter or {}).get("peft_type")
        hint = "tune weights or LoRA for a file that devices run; edgetune.load opens this one in Python"
        raise ModelError(f"a fine-tune of the kind {kind} is no change of weights", where=where, hint=hint)
    found = _change(ledger, outline, key, where)
    own = found.own()
    if own is not None and ledger.weights_digest:
        digest = tensor_digest(own)
        if digest != ledger.weights_digest:
            what = f"the rebuilt factors have digest {digest[:12]}, the ledger records"
            raise DigestError(f"{what} {ledger.weights_digest[:12]}", where=where, hint="report this")
    return found


def _change(ledger: Ledger, outline: PreTrainedModel, key: bytes | None, where: Path | None) -> Change:
    update, said = ledger.update, ledger.adapter or {}
    kind = said.get("peft_type")
    if kind == "LORA":
        return _low_rank(ledger, outline, key, where)
    shapes = {name: tuple(one.shape) for name, one in outline.named_parameters()}
    if isinstance(update, Dense):
        if {name: shapes.get(name) for name in update.tensors} != {
            name: tuple(one.shape) for name, one in update.tensors.items()
        }:
            raise ModelError("the ledger's tensors do not belong to this model", where=where)
        return Replaced(update.tensors)
    space, terms = _directions(ledger, outline, key)
    placing = SOME.get(str(kind))
    only = None if placing is None else frozenset(placing.described(said).place(outline, 0).weights)
    return Summed(space, terms, only, grid_named(ledger.extra.get(BASE_GRID)))


def _directions(ledger: Ledger, outline: nn.Module, key: bytes | None) -> tuple[Adds, Projected]:
    """Return the directions, and their coefficients in the order in which a run adds them."""
    if ledger.directions is None or not isinstance(ledger.update, Projected):
        raise ModelError("the ledger holds neither directions nor an adapter", hint="get it again")
    space: Adds = space_of(ledger.directions, key)
    scales = scales_of(ledger, outline)
    ordered = (ledger.update.sorted() if space.pooled else ledger.update).moving()
    return ScaledSpace(space, scales) if scales else space, ordered  # type: ignore[arg-type]


def _low_rank(ledger: Ledger, outline: PreTrainedModel, key: bytes | None, where: Path | None) -> LowRank:
    said = ledger.adapter or {}
    linear = {
        name: module for name, module in outline.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    if (
        said.get("use_rslora")
        or said.get("use_dora")
        or said.get("rank_pattern")
        or said.get("alpha_pattern")
    ):
        raise ModelError(
            "the ledger's factors are scaled in a way that this version does not know", where=where
        )
    beneath: Mapping[str, torch.Tensor] = {}
    if isinstance(ledger.update, Dense):
        own = dict(trained(ledger.update).tensors)
        beneath = residuals(ledger.update)
        values = own | _fixed(own, said, linear)
    else:
        own, values = _grown(ledger, outline, linear, key)
    named = pairs(values)
    factors = {
        stem.removeprefix(PEFT): (values[left].float(), values[right].float())
        for stem, (left, right) in named.items()
    }
    for layer, (left, right) in factors.items():
        if layer not in linear or (left.shape[0], right.shape[1]) != _sides(linear[layer]):
            raise ModelError(f"the ledger adapts {layer[:80]!r}, not this model's", where=where)
    if len(named) * 2 != len(values) or not named:
        raise ModelError("the ledger's factors are no pairs", where=where, hint="get it again")
    turned = frozenset(layer for layer in factors if isinstance(linear[layer], Conv1D))
    if wrong := misfit(beneath, own):
        raise ModelError("a residual belongs to no adapted layer of this model", where=wrong)
    for stem, (left, right) in side_by_side(beneath).items():
        layer = stem.removeprefix(PEFT)
        factors[layer] = (torch.cat([factors[layer][0], left], 1), torch.cat([factors[layer][1], right], 0))
    whole = {
        name.removesuffix(".residual").removeprefix(PEFT): one
        for name, one in beneath.items()
        if name.endswith(".residual")
    }
    scale = float(said["lora_alpha"]) / int(said["r"])
    return LowRank(factors, scale, whole, turned, own)


def _sides(module: Any) -> tuple[int, int]:
    """Return outputs and inputs of a linear layer."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def _fixed(
    own: Mapping[str, torch.Tensor], said: Mapping[str, Any], linear: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the A that did not travel, which the seed gives."""
    if not said.get("freeze_a"):
        return {}
    layers = [name.partition(B)[0].removeprefix(PEFT) for name in own if B in name]
    return {name: one for name, one in _initial(layers, said, linear).items() if A in name}


def _initial(
    layers: list[str], said: Mapping[str, Any], linear: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the factors of layers before the first step, by peft's names."""
    rank, seed, found = int(said["r"]), int(said.get("seed", 0)), {}
    for layer in layers:
        if layer not in linear:
            raise ModelError(f"the ledger adapts {layer[:80]!r}, which this model lacks")
        outputs, inputs = _sides(linear[layer])
        right = f"{PEFT}{layer}{A}default.weight"
        found[right] = uniform(seed, right, (rank, inputs), 1 / math.sqrt(inputs))
        found[f"{PEFT}{layer}{B}default.weight"] = torch.zeros(outputs, rank)
    return found


def _grown(
    ledger: Ledger, outline: PreTrainedModel, linear: Mapping[str, Any], key: bytes | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the trained factors, and all of them, from their initial values and the directions."""
    said = ledger.adapter or {}
    targets, spared = set(said.get("target_modules") or ()), set(said.get("exclude_modules") or ())
    layers = [name for name in linear if _ends(name, targets) and not _ends(name, spared)]
    values = _initial(layers, said, linear)
    own = {name: one for name, one in values.items() if B in name or not said.get("freeze_a")}
    space, terms = _directions(ledger, outline, key)
    for name, one in own.items():
        if len(terms.keys):
            space.replay(one, one.clone(), terms, name)
    return own, values


def _ends(name: str, endings: set[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in endings)
