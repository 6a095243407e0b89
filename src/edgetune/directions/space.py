"""A kind of direction bound to a key: what the tuned handle reads its perturbations from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.moves import Moves
from edgetune.core.quantised import StoredTensor, values_of
from edgetune.core.remainder import held, join, split
from edgetune.core.update import Projected
from edgetune.directions import gpu, native
from edgetune.directions.few import few_rows
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kernel import compiled_level, triton_wanted
from edgetune.directions.kind import Elementwise, Kind, Summed
from edgetune.directions.moves import moves_of
from edgetune.directions.native.product import multiplies
from edgetune.directions.native.rank_one import ranks
from edgetune.directions.native.remainder import follow, follows
from edgetune.directions.native.signs import CompiledSource
from edgetune.directions.native.tensors import KernelDirections
from edgetune.directions.projection import Projection
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.source import CachedSource, Source
from edgetune.directions.stored import StoredReader
from edgetune.directions.subspace import SubspaceKind


class BoundSpace:
    """Directions of one kind under one key (see `core.tuned.Space`).

    CUDA tensors go through the Triton kernels where Triton is installed, CPU tensors through the compiled kernel where
    it was built; everything else through the torch reference.

    Args:
        kind: what a direction looks like.
        key: 32 bytes.
        pooled: whether the directions come from a pool; a Hadamard kind is one.

    Raises:
        ConfigError, MissingExtraError: if EDGETUNE_KERNEL asks for what is not there.
    Cost: nothing with a kernel; in plain torch a Hadamard pool remembers two bytes a weight.
    """

    def __init__(self, kind: Kind, key: bytes, *, pooled: bool = False) -> None:
        self.kind, self.key = kind, key
        self.pooled = pooled or kind.sized
        self._level, self._triton = compiled_level(), triton_wanted()
        self.few = few_rows(self._level)
        drawn = Source(key)
        if self._level is not None and isinstance(kind, RankOneKind | SubspaceKind):
            drawn = CompiledSource(key, self._level)
        self._source = CachedSource(key, drawn) if kind.sized else drawn
        self._in_kernel = KernelDirections(kind, key)
        self._core: tuple[Projected, torch.Tensor] | None = None

    @cached_property
    def stored(self) -> StoredReader:
        """Reads a base as it is stored."""
        return StoredReader(self._level, self.few)

    def moves(self, scales: Mapping[str, float]) -> Moves | None:
        """Return what directions of rank one add to the outputs of layers; None of all others."""
        return moves_of(self.kind, self._source, scales)

    def projection(self) -> Projection:
        """Return what takes slopes along all directions of a pool, of gradients that come one tensor at a time.

        Raises:
            ConfigError: if no transform sums these directions.
        """
        if not isinstance(self.kind, Summed):
            raise ConfigError(
                f"slopes along all {self.kind.name} directions would take a pass over them each"
            )
        return Projection(self.kind, self._source)

    @property
    def alignment(self) -> int:
        """Multiples at which a part of a tensor may start; 0 if tensors are formed whole."""
        sliced = isinstance(self.kind, Elementwise) and (self._compiled or self._triton)
        return native.ALIGNMENT if sliced else 0

    @property
    def _compiled(self) -> bool:
        return self._level is not None

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, name: str, seed: int, start: int = 0
    ) -> None:
        """Form `out = base + coefficient * z(seed)`, of a whole tensor or of the part from element `start` on."""
        self.kind.refuse(seed)
        if self._triton and gpu.serves(self.kind, out, base):
            step = Projected.of(seed, coefficient)
            gpu.run(self.kind, self.key, name, out, base, step, replay=False, start=start)
        elif self._in_c(out, base):
            self._in_kernel.tensor(name).axpy(out, base, coefficient, seed, start=start, level=self._level)
        elif start == 0 or not isinstance(self.kind, Elementwise):
            self.kind.axpy(out, base, coefficient, self._source, name, seed)
        else:
            z = self.kind.values(self._source, name, seed, start, base.numel(), base.device).view(base.shape)
            out.copy_(z.mul_(coefficient).add_(base.float()))

    def replay(self, out: torch.Tensor, base: torch.Tensor, update: Projected, name: str) -> None:
        """Form `out = base + sum_k a_k z_k`; see `Kind.replay`."""
        self.kind.refuse(update.keys)
        if self._triton and gpu.serves(self.kind, out, base):
            gpu.run(self.kind, self.key, name, out, base, update, replay=True)
        elif self._in_c(out, base):
            self._in_kernel.tensor(name).replay(out, base, self._in_kernel.terms(update), level=self._level)
        elif isinstance(self.kind, RankOnePool):
            self.kind.add_core(out, base, self.core(update).to(out.device), self._source, name)
        else:
            terms = zip(update.keys.tolist(), update.coefficients.tolist(), strict=True)
            self.kind.replay(out, base, terms, self._source, name)

    def core(self, update: Projected) -> torch.Tensor:
        """Return the small matrix of a pool's sum, float32 [P, Q]; all tensors of a model ask for the same one in turn.

        Raises:
            TypeError: if the directions are no pool of rank one.
        """
        if not isinstance(self.kind, RankOnePool):
            raise TypeError(f"{self.kind.name} directions have no core")
        if self._core is None or self._core[0] is not update:
            self._core = update, self.kind.core(update)
        return self._core[1]

    def low_rank(
        self, update: Projected, name: str, rows: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the sum of directions of a matrix as two factors; None of a kind whose directions have full rank.

        See `RankOneKind.low_rank`; on the CPU.
        """
        self.kind.refuse(update.keys)
        if not isinstance(self.kind, RankOneKind):
            return None
        return self.kind.low_rank(update, self._source, name, rows, columns)

    @property
    def transforms(self) -> bool:
        """Whether a replay sums all directions by one transform."""
        return self.kind.sized

    def follow(
        self,
        weight: torch.Tensor,
        remainder: torch.Tensor,
        update: Projected,
        name: str,
        base: torch.Tensor | None = None,
    ) -> None:
        """Add directions, in their order, to a 16-bit tensor and the remainders of its rounding.

            x <- held(x + c_i z_i),   x = what weight and remainder hold, or held(base)

        Args:
            weight: float16 or bfloat16, contiguous; written.
            remainder: int16, like `weight` in shape; written (see `core.remainder`).
            update: directions and coefficients.
            name: the parameter's name.
            base: start from it instead, of any float type.
        Cost: a draw a direction; one pass with the compiled kernels, else float32 scratch of the tensor.
        """
        start = weight if base is None else base
        follows_there = isinstance(self.kind, Elementwise) and not self.transforms
        if self._triton and follows_there and gpu.serves(self.kind, weight, start):
            gpu.follow(self.kind, self.key, name, weight, remainder, update, base)
            return
        if self._compiled and weight.is_contiguous() and follows(self.kind, weight, start):
            terms = self._in_kernel.terms(update)
            follow(self._in_kernel.tensor(name), weight, remainder, terms, base=base, level=self._level)
            return
        x = join(weight, remainder) if base is None else held(base.float(), weight.dtype)
        for seed, coefficient in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
            self.axpy(x, x, coefficient, name, seed)
            x = held(x, weight.dtype)
        for to, part in zip((weight, remainder), split(x, weight.dtype), strict=True):
            to.copy_(part)

    def read(
        self,
        out: torch.Tensor,
        base: StoredTensor,
        state: Projected,
        name: str,
        perturbation: tuple[int, float],
        start: int,
    ) -> None:
        """Form a part of weights that are not stored, in float32, rounded once.

            out = base + sum_k a_k z_k + c z(seed),   (seed, c) = perturbation

        Args:
            out: contiguous, elements from `start` on, of any float type.
            base: the same elements of the base.
            state: a_k; may be empty.
            name: the parameter's name.
            perturbation: seed and signed factor; a factor of 0 draws nothing.
            start: a multiple of `replay_alignment`; 0 without the compiled kernel. Of a pool of rank one a multiple of
                `row_alignment` rows, where nothing is perturbed.
        Cost: one pass, and a replay; a float32 copy of the part if `out` is narrower.
        """
        wide = out if out.dtype == torch.float32 else torch.empty(out.shape, device=out.device)
        if isinstance(base, torch.Tensor) and base.dtype not in native.DTYPES:
            base = base.float()  # a double
        seed, scale = perturbation
        if start and isinstance(self.kind, RankOnePool) and not scale:
            core, plain = self.core(state).to(wide.device), values_of(base, 0, wide.numel()).view(wide.shape)
            self.kind.add_core(wide, plain, core, self._source, name, start // wide.shape[-1])
        elif self._in_c(wide, base):
            self._in_kernel.tensor(name).replay(
                wide, base, self._in_kernel.terms(state), start=start, level=self._level
            )
        else:
            if start:
                raise RuntimeError("only the compiled kernel forms parts of weights that are not stored")
            self.replay(wide, values_of(base, 0, wide.numel()).view(wide.shape), state, name)
        if scale:
            self.axpy(out, wide, scale, name, seed, start)
        elif out is not wide:
            out.copy_(wide)

    @property
    def replay_alignment(self) -> int:
        """Multiples at which a part of a tensor that is replayed may start; 0 if tensors are formed whole."""
        padded = self.kind.padded if isinstance(self.kind, Hadamard) else 0
        return max(native.ALIGNMENT, padded) if self._compiled and isinstance(self.kind, Elementwise) else 0

    @property
    def row_alignment(self) -> int:
        """Multiples at which a part of whole rows of a matrix may start that `read` forms; 0 if formed whole."""
        return self.kind.tile[0] if isinstance(self.kind, RankOnePool) else 0

    def multiplies(self, x: torch.Tensor, weight: StoredTensor, *, stored: bool = True) -> bool:
        """Say whether `multiply` serves these operands; see `native.product.multiplies`."""
        return self._compiled and multiplies(self.kind, x, weight, stored=stored)

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
        """Multiply by a matrix at one or two points of a line; see `native.product.Matrix.multiply`."""
        summed = None if state is None else self._in_kernel.terms(state)
        return self._in_kernel.matrix(name).multiply(
            x, weight, seed, scales, pending=pending, state=summed, level=self._level
        )

    def gather(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        name: str,
        seed: int,
        scales: Sequence[float],
        pending: tuple[int, float] | None,
    ) -> torch.Tensor:
        """Return rows of a perturbed matrix where `multiplies` holds; see `native.product.Matrix.gather`."""
        return self._in_kernel.matrix(name).gather(
            rows, weight, seed, scales, pending=pending, level=self._level
        )

    def points(self, weight: torch.Tensor, name: str, seed: int, scales: Sequence[float]) -> torch.Tensor:
        """Return a small tensor at one or two points of a line, [points, ...].

        Cost: one draw and one pass for all points where `multiplies` holds, else one a point.
        """
        if self.multiplies(weight, weight):
            return self._in_kernel.matrix(name).points(weight, seed, scales, level=self._level)
        out = weight.new_empty(len(scales), *weight.shape)
        for point, scale in enumerate(scales):
            self.axpy(out[point], weight, scale, name, seed)
        return out

    def _in_c(self, out: torch.Tensor, base: StoredTensor) -> bool:
        """Say whether the compiled kernel forms this tensor."""
        return self._compiled and (native.serves(self.kind, out, base) or ranks(self.kind, out, base))
