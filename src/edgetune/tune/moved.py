"""Layers that add what directions of rank one give to their own outputs: the base is read once, and never written."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.moves import Moves
from edgetune.core.perturbation import UNPERTURBED, Perturbation
from edgetune.core.tuned import Slopes
from edgetune.tune.attach import attach_one
from edgetune.tune.packed_base import StoredProduct
from edgetune.tune.readers import Reader, Reads


class MovedReads(Reads, Protocol):
    """What these readers need of the handle they read for."""

    @property
    def moves(self) -> Moves:
        """What is added."""
        ...

    @property
    def hidden(self) -> Mapping[str, torch.Tensor]:
        """Parameters that hold NaN at the moment: what they held, by name."""
        ...

    @property
    def seen(self) -> Slopes | None:
        """What takes slopes from a backward pass; None where none is under way."""
        ...


class MovedReader(Reader):
    """The base of readers that compute as the module does, and add.

    Args:
        tuned: the handle.
        module: the module.
        own: parameter names in the model by names in the module.
        shape: of its matrix.
        plain: computes with the base in place of the module, where the module does not hold it.
        still: whether the matrix is read where it lies and not moved.
    """

    def __init__(
        self,
        tuned: MovedReads,
        module: nn.Module,
        own: dict[str, str],
        shape: tuple[int, int],
        plain: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        still: bool = False,
    ) -> None:
        super().__init__(tuned, module, own)
        self._plain = plain or self._plain
        self._moving, self._shape, self.still = tuned, shape, still

    @property
    def plain(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What the module computes by itself."""
        return self._plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the module does; where slopes are taken, errors that come back are seen along the pool."""
        seen, (x,) = self._moving.seen, (*args, *kwargs.values())
        if seen is None or not torch.is_grad_enabled() or (self.still and not x.requires_grad):
            return super().forward(x)
        tile = None if self.still else seen.tile(x.device)
        return _Followed.apply(x, tile, self, seen)  # type: ignore[no-untyped-call]

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Compute at all points at once."""
        (x,) = (*args, *kwargs.values())
        with self._shown():
            y: torch.Tensor = self._plain(x)
        points = len(now.scales)
        if points > 1 and x.shape[0] == 1:  # positions, the same for all records
            x, y = (one.expand(points * now.records, *one.shape[1:]) for one in (x, y))
        now.check(y)
        if self.still:
            return y
        out = y.float().contiguous()
        self.move(now, x, out.view(points, -1, out.shape[-1]))
        return out.to(y.dtype)

    def move(self, now: Perturbation, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y, float32 [points, rows, outputs], what the module's own argument gives."""
        raise NotImplementedError

    def sides(self, seen: Slopes, x: torch.Tensor) -> torch.Tensor:
        """Return what the gradient of the matrix needs of the argument, float32 [..., a side of the tile]."""
        raise NotImplementedError

    def outer(self, seen: Slopes, kept: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the pool's tile, of what `sides` kept and the error of the output."""
        raise NotImplementedError

    def back(self, now: Perturbation, e: torch.Tensor) -> torch.Tensor:
        """Return the error of the argument by that of the output, float32 [..., inputs]."""
        raise NotImplementedError

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Let the module see its own parameters where they are hidden from the rest of the model."""
        held = {key: name for key, name in self._own.items() if self._module._parameters.get(key) is not None}
        hidden = {key: self._moving.hidden[name] for key, name in held.items() if name in self._moving.hidden}
        before = {key: self.like(key) for key in hidden}
        try:
            for key, value in hidden.items():
                self._module.get_parameter(key).data = value
            yield
        finally:
            for key, value in before.items():
                self._module.get_parameter(key).data = value


class MovedLinear(MovedReader):
    """A linear layer, of whatever type its matrix is stored in.

    y = W x + (W' - W) x + b'
    """

    _turned: ClassVar[bool] = False
    """Whether the matrix is stored as [inputs, outputs]."""

    def move(self, now: Perturbation, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add `x (W' - W)^T` and what moves the bias."""
        self._multiply(self._own["weight"], x.reshape(len(y), -1, x.shape[-1]).float(), y, now)
        if "bias" in self._own:
            y += self._moving.moves.vectors(self._own["bias"], y.shape[-1], now, y.device).unsqueeze(1)

    def sides(self, seen: Slopes, x: torch.Tensor) -> torch.Tensor:
        """Return the argument over the columns of the matrix."""
        return seen.folded(self._own["weight"], self._shape, x, columns=not self._turned)

    def outer(self, seen: Slopes, kept: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Fold `e x^T`, or `x e^T` where the matrix is stored so."""
        given = seen.folded(self._own["weight"], self._shape, e, columns=self._turned)
        return _outer(kept, given) if self._turned else _outer(given, kept)

    def back(self, now: Perturbation, e: torch.Tensor) -> torch.Tensor:
        """Return `e W'`: of a base that the module holds, or that is read where it lies, and of what moved."""
        if isinstance(self._plain, StoredProduct):
            found = self._plain.back(e)
        else:
            weight = self.like("weight").float()
            found = e.float() @ (weight.T if self._turned else weight)
        if not self.still:
            rows = e.reshape(1, -1, e.shape[-1]).float().contiguous()
            self._return(self._own["weight"], rows, found.view(1, -1, found.shape[-1]), now)
        return found

    def _multiply(self, name: str, x: torch.Tensor, y: torch.Tensor, now: Perturbation) -> None:
        self._moving.moves.linear(name, self._shape, x, y, now)

    def _return(self, name: str, e: torch.Tensor, found: torch.Tensor, now: Perturbation) -> None:
        self._moving.moves.turned(name, self._shape, e, found, now)


class MovedConv1D(MovedLinear):
    """A linear layer whose matrix is stored as [inputs, outputs], as GPT-2's."""

    _turned: ClassVar[bool] = True

    def _multiply(self, name: str, x: torch.Tensor, y: torch.Tensor, now: Perturbation) -> None:
        self._moving.moves.turned(name, self._shape, x, y, now)

    def _return(self, name: str, e: torch.Tensor, found: torch.Tensor, now: Perturbation) -> None:
        self._moving.moves.linear(name, self._shape, e, found, now)


class MovedEmbedding(MovedReader):
    """An embedding: rows that are asked for, and what is added to them."""

    def move(self, now: Perturbation, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add rows of `W' - W`."""
        self._moving.moves.rows(self._own["weight"], self._shape, x.reshape(len(y), -1), y, now)

    def sides(self, seen: Slopes, x: torch.Tensor) -> torch.Tensor:
        """Return the ids over the rows of the table, nothing where its module takes no gradient: at its padding."""
        padding: Any = self._module.padding_idx
        rows = seen.picked(self._own["weight"], self._shape, x)
        return rows if padding is None else rows.mul_(x.ne(padding).unsqueeze(-1))

    def outer(self, seen: Slopes, kept: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Fold the errors of the rows that were looked up."""
        return _outer(kept, seen.folded(self._own["weight"], self._shape, e, columns=True))


class _Followed(torch.autograd.Function):
    """A layer of whose matrix a pool's tile gets the gradient; what it was given gets its own where that is wanted."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, tile: torch.Tensor | None, reader: MovedReader, seen: Slopes
    ) -> torch.Tensor:
        """Compute as the layer does, of a tile that is 0."""
        ctx.reader, ctx.seen, ctx.dtype = reader, seen, x.dtype
        if tile is not None:
            ctx.save_for_backward(reader.sides(seen, x))
        y: torch.Tensor = reader.perturbed(UNPERTURBED, x)
        return y

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, e: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        """Return the error of what the layer was given, and the gradient of the tile."""
        outer = None
        for kept in ctx.saved_tensors:
            outer = ctx.reader.outer(ctx.seen, kept, e)
        found = ctx.reader.back(UNPERTURBED, e).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return found, outer, None, None


def _outer(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the sum of outer products of [..., P] and [..., Q], [P, Q]."""
    return rows.flatten(0, -2).T @ columns.flatten(0, -2)


def attach_moved(
    owner: MovedReads,
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    plain: Callable[[nn.Module, str], Callable[[torch.Tensor], torch.Tensor] | None],
    moved: Container[str],
) -> Iterator[Reader]:
    """Yield a reader for every module that owns some of the weights; matrices that are called are not formed.

    Args:
        owner: what the readers read for.
        model: its modules are read through the readers from now on, until they are closed.
        weights: by name; a quantised layer's matrix is named after its module, `NAME.weight`.
        plain: called with a module and the name of its matrix: computes with the base in its place, None if it does so.
        moved: the names of those that move; the others are read where they lie.
    """
    names = {id(weight): name for name, weight in weights.items()}
    for path, module in model.named_modules():
        own = {key: names[id(value)] for key, value in module._parameters.items() if id(value) in names}
        if quantised(module) and f"{path}.weight" in weights:
            own["weight"] = f"{path}.weight"
        made = _made(module)
        if own and made is not None and "weight" in own:
            name = own["weight"]
            shape = (weights[name].shape[0], weights[name].shape[1])
            yield made(owner, module, own, shape, plain(module, name), still=name not in moved)
        elif own:
            yield from attach_one(owner, module, own)


MOVED: dict[type, type[MovedReader]] = {
    nn.Linear: MovedLinear,
    Conv1D: MovedConv1D,
    nn.Embedding: MovedEmbedding,
}
"""The reader of every type of module that multiplies by its matrix, or looks rows of it up, and does nothing else."""


def plain_matrices(model: nn.Module) -> set[str]:
    """Return the names of matrices that all their modules multiply by, or look rows up of, and do nothing else with."""
    owners = [
        (id(one), _made(module) is not None)
        for module in model.modules()
        for one in module._parameters.values()
        if one is not None
    ]
    other = {one for one, plain in owners if not plain}
    return {name for name, one in model.named_parameters() if one.dim() == 2 and id(one) not in other}


def _made(module: nn.Module) -> type[MovedReader] | None:
    """Return the reader of a module's matrix; None if the module does something of its own with it."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return None
    return MOVED.get(type(module)) or (MovedLinear if quantised(module) else None)


def quantised(module: nn.Module) -> bool:
    """Say whether a module is a linear layer that holds its matrix in another form than as floats."""
    sized = [all(isinstance(getattr(one, size, None), int) for size in SIZES) for one in module.modules()]
    floats = (name for name, one in module.named_parameters() if one.is_floating_point())
    return sized[0] and not any(sized[1:]) and set(floats) <= {"bias"}


SIZES = ("in_features", "out_features")
"""What linear layers of all libraries call the widths of their matrix."""
