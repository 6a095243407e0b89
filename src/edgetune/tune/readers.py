"""Modules that read perturbed weights: one reader a module, in place of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from edgetune.core.perturbation import Perturbation
from edgetune.tune.parts import Form, gathered_rows, perturbed_linear, perturbed_rows


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
        """Return rows of a matrix at all points, without a loop in Python; None if that is not served."""
        ...

    def points(self, name: str, now: Perturbation) -> torch.Tensor:
        """Return a small parameter at all points, [points, ...]."""
        ...

    @property
    def few(self) -> int:
        """Greatest number of rows of one point for which `product` is the faster way."""
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

    @property
    def weight(self) -> str | None:
        """Name in the model of the module's own matrix."""
        return self._own.get("weight")

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
        if not torch.is_grad_enabled():
            return self.perturbed(now, *args, **kwargs)
        with torch.no_grad():
            return self.perturbed(now, *args, **kwargs)

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Compute at one point, or at one after the other on its share of the arguments."""
        if len(now.scales) == 1:
            with self._swapped(now):
                return self._plain(*args, **kwargs)
        found = []
        for point in range(len(now.scales)):
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


class VectorReader(Reader):
    """Computes a module without children that owns vectors only, a norm for example, at all points at once.

    Most such modules broadcast: given x with a leading dimension of points, and their vectors so too, they give what
    as many calls give. Whether one does is found out at the first reading, on the fixed batch that every handle starts
    with (`walk.stacks`), so that the answer is the model's and not the data's.
    """

    _broadcasts: bool | None = None

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Compute at one point, or at all."""
        x = args[0] if len(args) == 1 and not kwargs else None
        if len(now.scales) == 1 or not isinstance(x, torch.Tensor) or x.dim() < 2 or x.shape[0] == 1:
            return super().perturbed(now, *args, **kwargs)
        now.check(x)
        if self._broadcasts:
            return self._at_once(now, x)
        expected = super().perturbed(now, x)
        if self._broadcasts is None:
            self._broadcasts = self._agrees(now, x, expected)
        return expected

    def _agrees(self, now: Perturbation, x: torch.Tensor, expected: torch.Tensor) -> bool:
        try:
            return torch.equal(self._at_once(now, x), expected)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # it expects other shapes
            return False

    def _at_once(self, now: Perturbation, x: torch.Tensor) -> torch.Tensor:
        parameters, ones = self._module._parameters, (1,) * (x.dim() - 1)
        before = {key: parameters[key] for key in self._own}
        try:
            for key, name in self._own.items():
                parameters[key] = self._tuned.points(name, now).view(len(now.scales), *ones, -1)  # type: ignore[assignment]
            y: torch.Tensor = self._plain(_split(x, now))
        finally:
            parameters.update(before)
        return y.flatten(0, 1)


class NormReader(VectorReader):
    """Computes torch's own norms, whose vectors take no leading dimension: normalises, then scales and shifts."""

    _broadcasts = True

    def _at_once(self, now: Perturbation, x: torch.Tensor) -> torch.Tensor:
        y = NORMS[type(self._module)](self._module, _split(x, now))
        weight, bias = (self._vectors(now, key, y.dim()) for key in ("weight", "bias"))
        y = y if weight is None else y.mul_(weight)
        return (y if bias is None else y.add_(bias)).flatten(0, 1)

    def _vectors(self, now: Perturbation, key: str, dimensions: int) -> torch.Tensor | None:
        if key in self._own:
            return self._tuned.points(self._own[key], now).view(len(now.scales), *(1,) * (dimensions - 2), -1)
        return self._module._parameters.get(key)


def _split(x: torch.Tensor, now: Perturbation) -> torch.Tensor:
    """Give the points a dimension of their own, the first."""
    points = len(now.scales)
    return x.reshape(points, x.shape[0] // points, *x.shape[1:])


NORMS: dict[type, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    nn.LayerNorm: lambda norm, x: functional.layer_norm(x, norm.normalized_shape, None, None, norm.eps),
    nn.RMSNorm: lambda norm, x: functional.rms_norm(x, norm.normalized_shape, None, norm.eps),
}
"""Torch's norms over the last dimension, without their vectors."""


class EmbeddingReader(Reader):
    """Forms only the rows of an embedding that are asked for."""

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Look tokens up; both points usually ask for the same."""
        (ids,) = args
        points = range(len(now.scales))
        halves = [now.part(ids, point) for point in points] if len(points) > 1 else [ids]
        if len(halves) > 1 and torch.equal(*halves):
            found = self._rows(halves[0], now)
        else:
            found = [self._rows(half, now.only(point))[0] for point, half in enumerate(halves)]
        return now.join(found) if len(found) > 1 else found[0]

    def _rows(self, ids: torch.Tensor, now: Perturbation) -> list[torch.Tensor]:
        """Return the rows at every point."""
        name, like, points = self._own["weight"], self.like("weight"), range(len(now.scales))
        rows = self._tuned.rows(name, ids.reshape(-1), now)
        if rows is not None:
            return list(rows.view(len(points), *ids.shape, like.shape[1]))
        return [self._formed(ids, like, now.only(point)) for point in points]

    def _formed(self, ids: torch.Tensor, like: torch.Tensor, now: Perturbation) -> torch.Tensor:
        form = self._tuned.form(self._own["weight"], now, few=not like.is_cuda)
        if like.is_cuda:
            return gathered_rows(ids, like, form, self._tuned.alignment, self._tuned.part)
        rows = perturbed_rows(ids, like, form, self._tuned.alignment)
        return rows if rows is not None else functional.embedding(ids, self.whole(now, "weight"))


class LinearReader(Reader):
    """Multiplies by a perturbed matrix that never exists as a whole."""

    def perturbed(self, now: Perturbation, *args: Any, **kwargs: Any) -> Any:
        """Multiply; few rows read the matrix once for all points, many form it in parts."""
        (x,) = args
        like, points = self.like("weight"), len(now.scales)
        now.check(x)
        y = None
        if x.numel() // (points * like.shape[1]) <= self._tuned.few:
            y = self._tuned.product(self._own["weight"], x, now)
        if y is None:
            formed = [self._formed(now.only(point), half) for point, half in enumerate(x.chunk(points))]
            y = torch.cat(formed) if points > 1 else formed[0]
        if "bias" in self._own:
            y.view(points, -1, like.shape[0]).add_(self._tuned.points(self._own["bias"], now).unsqueeze(1))
        return y.view(*x.shape[:-1], like.shape[0])

    def _formed(self, now: Perturbation, x: torch.Tensor) -> torch.Tensor:
        form = self._tuned.form(self._own["weight"], now)
        return perturbed_linear(x, self.like("weight"), form, self._tuned.alignment, self._tuned.part)
