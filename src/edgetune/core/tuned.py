"""The seams around a tuned model: where directions come from, and what every tuned handle can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from edgetune.core.batch import Batch, Objective, RecordLosses
from edgetune.core.moves import Moves
from edgetune.core.quantised import StoredTensor
from edgetune.core.update import Projected, Update


class Adds(Protocol):
    """Directions that can be added to tensors."""

    @property
    def alignment(self) -> int:
        """Multiples at which a part of a tensor may start; 0 if tensors are formed whole."""
        ...

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, name: str, seed: int, start: int = 0
    ) -> None:
        """Form `out = base + coefficient * z(seed)` of tensor `name` from element `start` on, rounded once."""
        ...

    @property
    def pooled(self) -> bool:
        """Whether directions come from a pool: a ledger then names each once, and steps have no order."""
        ...

    @property
    def transforms(self) -> bool:
        """Whether a replay sums all directions by one transform, instead of adding one after the other."""
        ...

    def replay(self, out: torch.Tensor, base: torch.Tensor, update: Projected, name: str) -> None:
        """Form `out = base + sum_k a_k z_k` of tensor `name`, in float32, rounded once."""
        ...

    def follow(
        self,
        weight: torch.Tensor,
        remainder: torch.Tensor,
        update: Projected,
        name: str,
        base: torch.Tensor | None = None,
    ) -> None:
        """Add directions in their order to a 16-bit tensor and its remainders, or to `base`, each sum held."""
        ...


class StoredReads(Protocol):
    """A base read as it is stored."""

    @property
    def alignment(self) -> int:
        """Multiples of elements at which a part of whole rows may start."""
        ...

    def part(self, out: torch.Tensor, stored: StoredTensor) -> None:
        """Dequantise a part of a tensor into `out`, float32."""
        ...

    def product(self, x: torch.Tensor, stored: StoredTensor) -> torch.Tensor | None:
        """Return `x W^T` of a matrix as it is stored; None where it has to be formed."""
        ...


class Slopes(Protocol):
    """A gradient seen along all directions of a pool."""

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take in the gradient of a tensor."""
        ...

    def folded(
        self, name: str, shape: tuple[int, int], values: torch.Tensor, *, columns: bool
    ) -> torch.Tensor:
        """Return what a pool of rank one sees of one side of a matrix's gradient `sum_t e_t x_t^T`.

        Args:
            name: of the matrix.
            shape: of the matrix, [m, n].
            values: [..., m], what stands over its rows; [..., n] over its columns.
            columns: which of the two.

        Returns:
            Float32 [..., P], or [..., Q].
        """
        ...

    def picked(self, name: str, shape: tuple[int, int], ids: torch.Tensor) -> torch.Tensor:
        """Return what it sees over the rows of rows that were looked up: of a one at each id, float32 [..., P]."""
        ...

    def tile(self, device: torch.device) -> torch.Tensor:
        """Return the leaf, [P, Q], whose gradient is taken in: `sum_t` of both sides, `folded` or `picked`."""
        ...

    def mean(self) -> Projected:
        """Return `(1 / K) sum_k <G, z_k> z_k`."""
        ...


class Space(Adds, Protocol):
    """The directions of one key: added, replayed, multiplied by."""

    def projection(self) -> Slopes:
        """Return what takes slopes along all directions of a pool that one transform sums."""
        ...

    @property
    def stored(self) -> StoredReads:
        """What reads a base as it is stored."""
        ...

    def moves(self, scales: Mapping[str, float]) -> Moves | None:
        """Return what directions add to the outputs of layers; None of those that weights are formed along."""
        ...

    def read(
        self,
        out: torch.Tensor,
        base: StoredTensor,
        state: Projected,
        name: str,
        perturbation: tuple[int, float],
        start: int,
    ) -> None:
        """Form `out = base + sum_k a_k z_k + c z(seed)` from element `start` on, in float32, rounded once."""
        ...

    @property
    def replay_alignment(self) -> int:
        """Multiples at which a part that `read` forms may start; 0 if tensors are formed whole."""
        ...

    @property
    def row_alignment(self) -> int:
        """Multiples at which a part of whole rows of a matrix may start that `read` forms; 0 if formed whole."""
        ...

    def multiplies(self, x: torch.Tensor, weight: StoredTensor, *, stored: bool = True) -> bool:
        """Say whether `multiply` serves these operands; `stored` if there is no state."""
        ...

    def multiply(
        self,
        x: torch.Tensor,
        weight: StoredTensor,
        name: str,
        seed: int,
        scales: Sequence[float],
        pending: tuple[int, float] | None,
        state: Projected | None = None,
    ) -> torch.Tensor:
        """Return `x[p] (W + scales[p] z(seed))^T` for the points p; W takes a pending step, or is base plus state."""
        ...

    def gather(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        name: str,
        seed: int,
        scales: Sequence[float],
        pending: tuple[int, float] | None,
    ) -> torch.Tensor:
        """Return rows of `(W + pending) + scales[p] z(seed)` for the points p; where `multiplies` holds for W."""
        ...

    def points(self, weight: torch.Tensor, name: str, seed: int, scales: Sequence[float]) -> torch.Tensor:
        """Return a small tensor plus `scales[p] z(seed)` for the points p, [points, ...]."""
        ...

    @property
    def few(self) -> int:
        """Greatest number of rows of one point for which `multiply` beats a matrix formed in memory."""
        ...


class Tuned(Protocol):
    """A model whose state is a base plus an update."""

    @property
    def model(self) -> nn.Module:
        """The module to run; it computes with the tuned weights."""
        ...

    def reset(self, state: Update | None) -> None:
        """Become the base plus `state`; None is the untouched (or freshly initialised) state."""
        ...

    def keep(self, folder: Path | None = None) -> None:
        """Make it cheap to come back to the present state, with a nameless file in `folder` if that takes one."""
        ...

    def apply(self, update: Update) -> None:
        """Add one step."""
        ...

    def delta(self) -> Update:
        """Return everything applied since the last reset."""
        ...

    def state(self) -> Update:
        """Return everything applied since the base: what a ledger stores."""
        ...

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the trainable tensors with their present values."""
        ...

    def adapter(self) -> dict[str, Any] | None:
        """Return the peft configuration if the trainable tensors are an adapter's, else None."""
        ...


class PerturbableTuned(Tuned, Protocol):
    """A tuned handle that can be read through a perturbation."""

    def perturbed(self, seed: int, scale: float) -> AbstractContextManager[None]:
        """While entered, forward passes compute with `w + scale * z(seed)`; `w` itself is never written."""
        ...

    def losses(self, objective: Objective, batch: Batch, seed: int, scales: Sequence[float]) -> list[float]:
        """Evaluate an objective at `w + scale * z(seed)` for every scale, in one walk of the model if it can."""
        ...

    def record_losses(
        self, losses: RecordLosses, batch: Batch, seed: int, scales: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the records' losses at `w + scale * z(seed)` for every scale, [points, records], and their counts."""
        ...
