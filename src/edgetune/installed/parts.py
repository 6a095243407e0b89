"""A ledger in the parts that a runtime can put on an untouched base: low-rank factors, and what goes whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import ModelError
from edgetune.core.ledger import Ledger
from edgetune.core.update import Projected
from edgetune.federation.load import scales_of, space_of
from edgetune.installed.base import Base
from edgetune.installed.change import Change, LowRank, Summed
from edgetune.installed.reading import change_of

Pair = tuple[torch.Tensor, torch.Tensor]
WAYS = "edgetune apply writes the changed file; tune lora, or along directions of rank one, for an adapter"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a ledger does, by the place that a runtime has for it.

        W + s B A   of a layer,   T + s B A   of a table of embeddings,   new values of what goes whole

    Args:
        factors: linear layer to B [outputs, r] and A [r, inputs], float32; a head that is an embedding table once more
            is a layer of its own here.
        scale: s.
        tables: embedding layer to B [rows, r] and A [r, width], float32.
        whole: parameter to its tuned values, float32: norms, biases, and tables that more is done to than a look-up.
        others: parameters that move and have no place in any adapter.
        tied: the layer among `factors` whose matrix is that of an embedding; empty if there is none.
        change: the same as a change of weights.
    """

    factors: Mapping[str, Pair]
    scale: float
    change: Change
    tables: Mapping[str, Pair] = field(default_factory=dict)
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    tied: str = ""


def parts_of(ledger: Ledger, base: Base, *, key: bytes | None = None, where: Path | None = None) -> Parts:
    """Return the parts of a ledger of LoRA, or of directions of rank one.

    Args:
        ledger: what was learnt.
        base: what it belongs to; its configuration and names are read, and the values of what goes whole.
        key: 32 bytes, if the directions are under a secret key.
        where: the ledger's file, for errors.

    Raises:
        ModelError: if it has no low rank, says what to use instead; or as `change_of`.
        DigestError: if it belongs to another base.
    Cost: the factors in float32: r (outputs + inputs) numbers a layer.
    """
    base.check(ledger, where or base.path)
    found: Change = change_of(ledger, base.outline, key=key, where=where)
    if isinstance(found, LowRank):
        if found.residuals:
            raise ModelError(
                "this run took whole matrices off the base, which no adapter can hold",
                where=where,
                hint="edgetune apply folds them into a file",
            )
        return Parts(found.factors, found.scale, found)
    if not isinstance(found, Summed) or not isinstance(ledger.update, Projected) or ledger.directions is None:
        raise _no_factors(ledger, where)
    if found.grid is not None:
        raise ModelError(
            f"this run began from weights rounded to {found.grid.name}, which no adapter rounds anew",
            where=where,
            hint="edgetune apply writes the changed file",
        )
    return _Split(ledger, base, found, key, where).parts()


class _Split:
    """Takes the sum of directions of rank one apart."""

    def __init__(
        self, ledger: Ledger, base: Base, change: Summed, key: bytes | None, where: Path | None
    ) -> None:
        if ledger.directions is None:
            raise _no_factors(ledger, where)
        self._ledger, self._base, self._change, self._where = ledger, base, change, where
        self._space, self._scales = space_of(ledger.directions, key), scales_of(ledger, base.outline)
        self._names = {id(one): name for name, one in base.outline.named_parameters()}

    def parts(self) -> Parts:
        """Return the parts."""
        if not len(self._change.update.keys):
            raise ModelError("this ledger changes nothing yet", where=self._where)
        self._refuse_large()
        factors, tables, tied = dict[str, Pair](), dict[str, Pair](), ""
        for layer, module, name in self._matrices():
            rows, columns = module.weight.shape
            left, right = self._factors(name, rows, columns)
            if isinstance(module, nn.Embedding):
                tables[layer] = left, right
            else:
                factors[layer] = (right.T, left.T) if isinstance(module, Conv1D) else (left, right)
                tied = layer if name != f"{layer}.weight" else tied
        held = {name for _, _, name in self._matrices()}
        moved = [name for name in self._base.names() if self._change.touches(name) and name not in held]
        whole = {
            name: self._change.of(name, self._base.read(name)) for name in moved if self._goes_whole(name)
        }
        if not factors and not tables:
            what = "this ledger moves no matrix, so that no adapter could hold anything of it"
            raise ModelError(what, where=self._where, hint="edgetune apply writes the changed file")
        others = tuple(name for name in moved if name not in whole)
        return Parts(factors, 1.0, self._change, tables, whole, others, tied)

    def _matrices(self) -> Iterator[tuple[str, Any, str]]:
        """Yield layer, module and parameter of every matrix that moves."""
        for layer, module in self._base.outline.named_modules():
            if isinstance(module, nn.Linear | Conv1D) or _is_table(module):
                name = self._names.get(id(module.weight), "")
                if name and self._change.touches(name):
                    yield layer, module, name

    def _factors(self, name: str, rows: int, columns: int) -> Pair:
        update = self._change.update.scaled(self._scales.get(name, 1.0))
        found = self._space.low_rank(update, name, rows, columns)
        if found is None:
            raise _no_factors(self._ledger, self._where)
        return found

    def _goes_whole(self, name: str) -> bool:
        module = self._base.outline.get_submodule(name.rpartition(".")[0])
        return self._base.outline.get_parameter(name).dim() == 1 or isinstance(module, nn.Embedding)

    def _refuse_large(self) -> None:
        """Refuse independent directions that are so many that their factors take more than the matrices."""
        shapes = [tuple(module.weight.shape) for _, module, _ in self._matrices()]
        probe = self._space.low_rank(self._change.update, "", 1, 1)
        if probe is None:
            raise _no_factors(self._ledger, self._where)
        rank = probe[0].shape[1]
        if self._space.transforms:
            return
        if rank * sum(m + n for m, n in shapes) > sum(m * n for m, n in shapes):
            raise ModelError(
                f"this ledger's sum has rank {rank}, and an adapter of that rank is larger than the model",
                where=self._where,
                hint="edgetune apply writes the changed file; method.directions=rank_one_pool sums to a small rank",
            )


def _is_table(module: nn.Module) -> bool:
    """Say whether a module looks rows up, at most times a factor; OPT's table of positions has an offset."""
    return type(module) is nn.Embedding or (
        isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")
    )


def _no_factors(ledger: Ledger, where: Path | None) -> ModelError:
    what = f"a ledger of {ledger.method} changes whole weights and has no low-rank factors"
    return ModelError(what, where=where, hint=WAYS)
