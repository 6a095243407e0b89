"""Modules that read perturbed weights: one reader a module, in place of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from edgetune.core.tuned import Space
from edgetune.tune.parts import Form, perturbed_linear, perturbed_rows

FEWEST, MOST = 8, 192
"""Rows of one point between which a product that forms the matrix in the cache beats one that forms it in memory:
below, lanes are empty; above, the matrix library's larger tiles win more than a pass over memory costs."""


class NotStackableError(Exception):
    """A module got an argument whose halves cannot be told apart; the points are then evaluated one by one."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What forward passes read at the moment.

    Args:
        seed: the direction.
        scales: one factor, or two if the batch holds every record twice, once a point, in that order.
        records: records of one point.
    """

    seed: int
    scales: tuple[float, ...]
    records: int = 0

    def only(self, point: int) -> Perturbation:
        """Return the perturbation of one point."""
        return Perturbation(self.seed, (self.scales[point],))

    def part(self, value: Any, point: int) -> Any:
        """Return one point's half of an argument; what is the same for all records is not cut."""
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] == 1:
            return value
        if value.shape[0] % (2 * self.records):
            raise NotStackableError(f"an argument of shape {tuple(value.shape)}")
        return value.chunk(2)[point]

    def join(self, values: list[Any]) -> torch.Tensor:
        """Put the outputs of both points together again."""
        if not all(isinstance(value, torch.Tensor) for value in values):
            raise NotStackableError("an output that is not a tensor")
        if values[0].shape[0] == 1 and self.records > 1:
            values = [value.expand(self.records, *value.shape[1:]) for value in values]
        return torch.cat(values)


class Reads(Protocol):
    """What readers need of the handle they read for."""

    perturbation: Perturbation | None

    @property
    def space(self) -> Space:
        """The directions."""
        ...

    @property
    def pending(self) -> Mapping[str, tuple[int, float]]:
        """Steps that weights have not taken yet: seed and coefficient by name."""
        ...

    def settle(self, name: str) -> None:
        """Let a weight take its pending step now."""
        ...

    def taken(self, name: str) -> None:
        """Note that a weight has taken its pending step."""
        ...


class Reader:
    """Computes any module with its own parameters perturbed; children read for themselves.

    Args:
        tuned: the handle.
        module: the module; its forward is replaced until `close`.
        own: parameter names in the model by names in the module.
    Cost: scratch of the module's own parameters.
    """

    def __init__(self, tuned: Reads, module: nn.Module, own: dict[str, str]) -> None:
        self._tuned, self._module, self._own = tuned, module, own
        self._plain: Callable[..., Any] = module.forward
        module.forward = self.forward

    def close(self) -> None:
        """Give the module its own forward back."""
        self._module.__dict__.pop("forward", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the module does, at the present point or points."""
        now = self._tuned.perturbation
        if now is None:
            for name in self._own.values():
                self._tuned.settle(name)
            return self._plain(*args, **kwargs)
        with torch.no_grad():
            return self.perturbed(now, *args, **kwargs)

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Compute at one point, or at one after the other on its half of the arguments."""
        if len(now.scales) == 1:
            with self._swapped(now):
                return self._plain(*args, **kwargs)
        found = []
        for point in range(2):
            self._tuned.perturbation = now.only(point)
            try:
                with self._swapped(now.only(point)):
                    half = {key: now.part(value, point) for key, value in kwargs.items()}
                    found.append(self._plain(*(now.part(value, point) for value in args), **half))
            finally:
                self._tuned.perturbation = now
        return now.join(found)

    @contextmanager
    def _swapped(self, now: Perturbation) -> Iterator[None]:
        weights = {key: self._module._parameters[key] for key in self._own}
        try:
            for key, weight in weights.items():
                if weight is not None:
                    self._module._parameters[key] = self.whole(now, key)  # type: ignore[assignment]
            yield
        finally:
            self._module._parameters.update(weights)

    def stored(self, key: str) -> torch.Tensor:
        """Return a parameter as it stands in memory."""
        value = cast(torch.Tensor, self._module._parameters[key])
        return value.data

    def form(self, now: Perturbation, key: str) -> Form:
        """Return what forms perturbed parts of a parameter."""
        name, scale, space = self._own[key], now.scales[0], self._tuned.space
        self._tuned.settle(name)
        return lambda out, base, start: space.axpy(out, base, scale, name, now.seed, start)

    def whole(self, now: Perturbation, key: str) -> torch.Tensor:
        """Return a perturbed parameter."""
        out = torch.empty_like(self.stored(key))
        self.form(now, key)(out, self.stored(key), 0)
        return out


class EmbeddingReader(Reader):
    """Forms only the rows of an embedding that are asked for."""

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Look tokens up; every point forms its own rows, and a pending step is added to these rows alone."""
        (ids,) = args
        name, space = self._own["weight"], self._tuned.space
        pending = self._tuned.pending.get(name)
        found = []
        for point, scale in enumerate(now.scales):

            def form(out: torch.Tensor, base: torch.Tensor, start: int, scale: float = scale) -> None:
                if pending:
                    space.axpy(out, base, pending[1], name, pending[0], start)
                space.axpy(out, out if pending else base, scale, name, now.seed, start)

            here = now.part(ids, point) if len(now.scales) > 1 else ids
            rows = perturbed_rows(here, self.stored("weight"), form, space.alignment)
            if rows is None:
                rows = nn.functional.embedding(here, self.whole(now.only(point), "weight"))
            found.append(rows)
        return now.join(found) if len(found) > 1 else found[0]


class LinearReader(Reader):
    """Multiplies by a perturbed matrix that never exists as a whole."""

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Multiply; two points on few rows read the matrix once, others form it in parts."""
        (x,) = args
        if len(now.scales) == 1:
            return self._at(now, x)
        weight = self.stored("weight")
        rows = x.numel() // (2 * weight.shape[1])
        if not (FEWEST <= rows <= MOST and x.shape[0] > 1 and self._tuned.space.multiplies(x, weight)):
            return now.join([self._at(now.only(point), now.part(x, point)) for point in range(2)])
        if x.shape[0] % (2 * now.records):
            raise NotStackableError(f"rows of shape {tuple(x.shape)}")
        name = self._own["weight"]
        y = self._tuned.space.multiply(x, weight, name, now.seed, now.scales, self._tuned.pending.get(name))
        self._tuned.taken(name)
        if "bias" in self._own:
            for point, half in enumerate(y.chunk(2)):
                half.add_(self.whole(now.only(point), "bias"))
        return y.view(*x.shape[:-1], weight.shape[0])

    def _at(self, now: Perturbation, x: torch.Tensor) -> torch.Tensor:
        y = perturbed_linear(x, self.stored("weight"), self.form(now, "weight"), self._tuned.space.alignment)
        return y.add_(self.whole(now, "bias")) if "bias" in self._own else y
