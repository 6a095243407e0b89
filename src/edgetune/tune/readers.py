"""Modules that read perturbed weights: one reader a module, in place of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

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
    def reading(self) -> Perturbation | None:
        """What is to be read now; None if the module's own parameters are."""
        ...

    @property
    def alignment(self) -> int:
        """Multiples at which a part of a tensor may start; 0 if tensors are formed whole."""
        ...

    @property
    def part(self) -> int:
        """Elements of a matrix that may be formed at a time."""
        ...

    def form(self, name: str, now: Perturbation, *, few: bool = False) -> Form:
        """Return what forms parts of a parameter at one point; `few` if it will be asked for few elements."""
        ...

    def product(self, name: str, x: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return `x W^T`, without forming W in memory, at all points; None if it has to be formed."""
        ...

    def rows(self, name: str, ids: torch.Tensor, now: Perturbation) -> torch.Tensor | None:
        """Return rows of a matrix at one point, without a loop in Python; None if that is not served."""
        ...

    def settle(self, name: str) -> None:
        """Bring a parameter up to date before it is read as it stands."""
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
        now = self._tuned.reading
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
            before, self._tuned.perturbation = self._tuned.perturbation, now.only(point)
            try:
                with self._swapped(now.only(point)):
                    half = {key: now.part(value, point) for key, value in kwargs.items()}
                    found.append(self._plain(*(now.part(value, point) for value in args), **half))
            finally:
                self._tuned.perturbation = before
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

    def like(self, key: str) -> torch.Tensor:
        """Return a parameter, for its shape, type and device."""
        return cast(torch.Tensor, self._module._parameters[key]).data

    def whole(self, now: Perturbation, key: str) -> torch.Tensor:
        """Return a perturbed parameter."""
        like = self.like(key)
        out = like.new_empty(like.shape)
        self._tuned.form(self._own[key], now)(out, 0)
        return out


class EmbeddingReader(Reader):
    """Forms only the rows of an embedding that are asked for."""

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Look tokens up; every point forms its own rows."""
        (ids,) = args
        found = []
        for point in range(len(now.scales)):
            here = now.part(ids, point) if len(now.scales) > 1 else ids
            found.append(self._rows(here, now.only(point)))
        return now.join(found) if len(found) > 1 else found[0]

    def _rows(self, ids: torch.Tensor, now: Perturbation) -> torch.Tensor:
        name, like = self._own["weight"], self.like("weight")
        if ids.numel() <= MOST:
            rows = self._tuned.rows(name, ids.reshape(-1), now)
            if rows is not None:
                return rows.view(*ids.shape, like.shape[1])
        rows = perturbed_rows(ids, like, self._tuned.form(name, now, few=True), self._tuned.alignment)
        return rows if rows is not None else nn.functional.embedding(ids, self.whole(now, "weight"))


class LinearReader(Reader):
    """Multiplies by a perturbed matrix that never exists as a whole."""

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Multiply; few rows read the matrix once for all points, many form it in parts."""
        (x,) = args
        like, points = self.like("weight"), len(now.scales)
        if points > 1 and x.shape[0] % (2 * now.records):
            raise NotStackableError(f"rows of shape {tuple(x.shape)}")
        y = None
        if FEWEST <= x.numel() // (points * like.shape[1]) <= MOST:
            y = self._tuned.product(self._own["weight"], x, now)
        if y is None:
            formed = [self._formed(now.only(point), half) for point, half in enumerate(x.chunk(points))]
            y = torch.cat(formed) if points > 1 else formed[0]
        if "bias" in self._own:
            for point, half in enumerate(y.chunk(points)):
                half.add_(self.whole(now.only(point), "bias"))
        return y.view(*x.shape[:-1], like.shape[0])

    def _formed(self, now: Perturbation, x: torch.Tensor) -> torch.Tensor:
        form = self._tuned.form(self._own["weight"], now)
        return perturbed_linear(x, self.like("weight"), form, self._tuned.alignment, self._tuned.part)
