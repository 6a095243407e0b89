"""What a ledger is applied to: a model in files, read and written one tensor at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import DigestError, ModelError
from edgetune.core.ledger import Ledger
from edgetune.core.quantised import BlockGrid
from edgetune.federation.residency import grid_named, rounded_digest
from edgetune.federation.worker import BASE_GRID
from edgetune.installed.change import Change
from edgetune.models.digest import add_tensor

Form = Callable[[str, torch.Tensor], torch.Tensor]
"""From a parameter's name and base values, float32, to its tuned values."""


@dataclass(frozen=True, slots=True)
class Touched:
    """How matrices are stored that a ledger changes and the base holds in blocks.

    Args:
        grid: the grid that they are rounded to anew; None for the file's own, on which codes alone move.
        half: store them in F16 instead.
    """

    grid: BlockGrid | None = None
    half: bool = False


OWN = Touched()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A ledger, and what it does to a base.

    Args:
        ledger: as read.
        change: on weights.
        path: its file.
    """

    ledger: Ledger
    change: Change
    path: Path


@dataclass(frozen=True, slots=True)
class Written:
    """What came of an application.

    Args:
        changed: tensors whose stored bytes differ from the base's.
        tensors: all of them.
        kept: share of the change that the stored types hold, <w' - w, stored - w> / |w' - w|^2; about 1 where types are
            fine, less where a change is smaller than the steps of a grid.
        direct: whether the base is the ledgers' own, and not a rounded copy of it.
    """

    changed: int
    tensors: int
    kept: float = 1.0
    direct: bool = False


class Base(ABC):
    """A model in files.

    Args:
        path: a folder or a file.
        outline: the model without values.
        digest: names weights and configuration, as ledgers do.
    """

    def __init__(self, path: Path, outline: PreTrainedModel, digest: str) -> None:
        self.path, self.outline, self.digest = path, outline, digest

    @property
    def claimed(self) -> str:
        """Digest of the base that these files say they were made from, rounded; empty if of none."""
        return ""

    @property
    def holds(self) -> str:
        """Digests of ledgers that these files say they hold already, by spaces."""
        return ""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the parameters, sorted."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """Return the values of a parameter, float32, in the model's row order, in memory of its own."""

    @abstractmethod
    def write(self, target: Path, names: Iterable[str], form: Form, said: dict[str, str]) -> Written:
        """Write files of the same kind in which some parameters have other values.

        Args:
            target: a new file or folder; not its final name.
            names: the parameters, sorted; each is formed once, in that order.
            form: gives the new values.
            said: provenance by key.

        Raises:
            ModelError: if a value cannot be stored.
            OutputError: if the files cannot be written.
        """

    def check(self, ledger: Ledger, where: Path) -> bool:
        """Refuse a ledger of another base.

        Returns:
            Whether the files hold that base itself, and not a rounded copy.

        Raises:
            DigestError: naming both.
            ModelError: if the files hold a ledger already.
        """
        if self.holds:
            raise ModelError(
                f"this file holds the ledger {self.holds[:12]} already",
                where=self.path,
                hint="apply to the base itself, or edgetune rollback the file first",
            )
        grid = grid_named(ledger.extra.get(BASE_GRID))
        for one in filter(None, (self.digest, self.claimed)):
            if ledger.base_digest == rounded_digest(one, grid):
                return one == self.digest
        known = " or ".join(one[:12] for one in (self.digest, self.claimed) if one)
        raise DigestError(
            f"this ledger belongs to base {ledger.base_digest[:12]}, not to {known}",
            where=where,
            hint="apply it to the base that it was tuned from, or to a file exported from that",
        )


def apply(base: Base, stack: Sequence[Loaded], target: Path, said: dict[str, str]) -> Written:
    """Write a base with ledgers added one after the other.

        w' = change_n(... change_1(w)),   tensor by tensor

    Args:
        base: what they belong to (`Base.check`).
        stack: the lowest first; not empty.
        target: a new file or folder, not its final name: it is worth nothing if this raises.
        said: provenance by key.

    Raises:
        ModelError: if a ledger can lie on nothing but the base, and another lies beneath it.
        DigestError: if the result is not what the ledger records; checked where it is a ledger alone on its own base.
    Cost: memory of the largest tensor in float32, a few times; the base is read once, the result written once.
    """
    for one in stack[1:]:
        if one.change.first:
            what = "this ledger replaces weights, so that nothing beneath it would count"
            raise ModelError(what, where=one.path, hint="put it first, or apply it alone")
    direct = [base.check(one.ledger, one.path) for one in stack]
    ledger = stack[0].ledger
    proves = len(stack) == 1 and all(direct) and stack[0].change.own() is None and bool(ledger.weights_digest)
    digest = sha256()

    def form(name: str, weight: torch.Tensor) -> torch.Tensor:
        for one in stack:
            if one.change.touches(name):
                weight = one.change.of(name, weight)
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(f"{name} would hold NaN or infinite weights", where=stack[-1].path)
        if proves:
            add_tensor(digest, name, weight)
        return weight

    touched = [name for name in base.names() if any(one.change.touches(name) for one in stack)]
    written = base.write(target, touched, form, said)
    if proves and digest.hexdigest() != ledger.weights_digest:
        raise DigestError(
            f"the rebuilt weights have digest {digest.hexdigest()[:12]}, the ledger records "
            f"{ledger.weights_digest[:12]}",
            where=stack[0].path,
            hint="report this: every machine must rebuild the same bits",
        )
    return replace(written, direct=all(direct))
