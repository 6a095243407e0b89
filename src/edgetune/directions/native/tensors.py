"""Directions of a model's tensors in the compiled kernel: what is worked out once and asked for at every step."""

from __future__ import annotations

from edgetune.core.update import Projected
from edgetune.directions.kind import Kind
from edgetune.directions.native.jobs import TensorDirections, Terms
from edgetune.directions.native.product import Matrix
from edgetune.directions.native.rank_one import RankedTerms, RankOneTensor
from edgetune.directions.rank_one import RankOneKind


class KernelDirections:
    """A kind of direction under one key, tensor by tensor, for the compiled kernel.

    Args:
        kind: what a direction looks like.
        key: 32 bytes.
    Cost: what the kernel keeps of a tensor, from when it is asked for.
    """

    def __init__(self, kind: Kind, key: bytes) -> None:
        self._kind, self._key = kind, key
        self._tensors: dict[str, TensorDirections] = {}
        self._summed: tuple[Projected, Terms] | None = None

    def tensor(self, name: str) -> TensorDirections:
        """Return the directions of a tensor."""
        found = self._tensors.get(name)
        if found is None:
            if isinstance(self._kind, RankOneKind):
                found = RankOneTensor(self._kind, self._key, name)
            else:
                found = Matrix(self._kind, self._key, name)
            self._tensors[name] = found
        return found

    def matrix(self, name: str) -> Matrix:
        """Return the directions of a matrix that `native.product.multiplies` holds for."""
        found = self.tensor(name)
        assert isinstance(found, Matrix)  # noqa: S101 - `multiplies` came first
        return found

    def terms(self, update: Projected) -> Terms:
        """Return a sum as the kernel reads it; all tensors of a model ask for the same one in turn."""
        if self._summed is None or self._summed[0] is not update:
            made = RankedTerms if isinstance(self._kind, RankOneKind) else Terms
            self._summed = update, made(self._kind, update)
        return self._summed[1]
