"""A compression method is a frozen value that names its parts; a variant is `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetune.compress.grid import ScaleFit
from edgetune.compress.mask_rule import Mask
from edgetune.compress.masking import Pruning
from edgetune.compress.rounding import Round
from edgetune.compress.search import LeastError
from edgetune.compress.sweep import ColumnRule
from edgetune.core.errors import ConfigError
from edgetune.core.integers import grid_named
from edgetune.core.quantised import GRIDS, Q4_0, Q8_0, BlockGrid

RuleFactory = Callable[[BlockGrid, ScaleFit], ColumnRule]
"""Makes the rule of a method from its grid and its way to choose scales; `Round` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionMethod:
    """What a one-shot method does to the matrices of a model.

    Args:
        name: public name, the name of its file.
        summary: one sentence for a list of methods.
        source: the paper, with its arXiv number.
        compensate: whether open columns make up for the error of fixed ones (needs calibration text).
        aim_dense: whether a layer is solved for the outputs of the dense model, which its own inputs, those of
            compressed layers, do not give any more; else for what its weights make of these inputs.
        grid: where the matrices of the decoder blocks go; None leaves the weights that a mask keeps in float.
        mask: which weights go; None keeps all.
        swaps: of weights of the mask for others, in every row, at most; at least 0.
        polish: steps of conjugate gradients on the kept weights, at least 0.
        scale: how a block's scale is chosen.
        rule: what happens to a column, or with a mask to the kept weights of one.
        embeddings: where the embedding and the head go; None leaves them alone. The embedding is rounded, and a head
            with it that is the same matrix; another head is solved as the blocks are, unless they are pruned.
        damping: first damping to try, a fraction of the mean diagonal of the Hessian, in (0, 1].
        block: columns between two lazy updates, at least 1; rounded up to whole blocks of the grid.
        static_order: whether the sweep goes from the heaviest input to the lightest, on numbers fitted beforehand.
        passes: over codes and scales after the sweep, each to the least error with all others fixed; at least 0.

    Raises:
        ConfigError: at construction, for a combination that cannot work.
    """

    name: str
    summary: str
    source: str
    compensate: bool
    aim_dense: bool = False
    grid: BlockGrid | None = Q4_0
    mask: Pruning | None = None
    swaps: int = 0
    polish: int = 0
    scale: ScaleFit = LeastError()  # noqa: RUF009 - a frozen value
    rule: RuleFactory = Round
    embeddings: BlockGrid | None = Q8_0
    damping: float = 0.01
    block: int = 128
    static_order: bool = False
    passes: int = 0

    def __post_init__(self) -> None:
        self.check()

    @property
    def label(self) -> str:
        """Name, sparsity and grid in words, for a file's metadata."""
        words = (self.name, self.mask and self.mask.sparsity.name, self.grid and self.grid.name)
        return " ".join(word for word in words if word)

    @property
    def refines(self) -> bool:
        """Whether something follows the sweep."""
        return bool(self.passes or self.swaps or self.polish)

    @property
    def reads(self) -> bool:
        """Whether calibration text is needed."""
        return self.compensate or self.refines or (self.mask is not None and self.mask.worth.calibrated)

    def rule_on(self, grid: BlockGrid | None) -> ColumnRule:
        """Return the rule for matrices that go on a grid; None leaves kept weights in float.

        Raises:
            ConfigError: if there is neither a grid nor a mask.
        """
        if self.mask is not None:
            then = None if grid is None else Round(grid, self.scale)
            return Mask(self.mask, then, self.swaps, self.polish)
        if grid is None:
            raise ConfigError("a method needs a grid or a mask, and this one has neither", where=self.name)
        return self.rule(grid, self.scale)

    def check(self) -> None:
        """Refuse what cannot work, one sentence each.

        Raises:
            ConfigError: naming the method and the field.
        """
        if self.aim_dense and not self.compensate:
            raise ConfigError(
                "aiming at the dense outputs is a way to compensate, and this method does not",
                where=f"{self.name}: aim_dense",
            )
        if self.static_order and (not self.compensate or self.mask is not None or self.rule is not Round):
            raise ConfigError(
                "an order of columns is of use to a method that compensates, and to rounding alone",
                where=f"{self.name}: static_order",
            )
        if self.passes < 0 or (self.passes and not self.compensate):
            raise ConfigError(
                "passes after the sweep are at least 0, and of use to a method that compensates",
                where=f"{self.name}: passes",
            )
        if not 0 < self.damping <= 1:
            raise ConfigError(
                f"damping must be above 0 and at most 1, not {self.damping}", where=self.name, hint="try 0.01"
            )
        if self.block < 1:
            raise ConfigError(
                f"block must be at least 1 column, not {self.block}", where=self.name, hint="try 128"
            )
        self._check_mask()
        for grid in (self.grid, self.embeddings):
            if grid is not None and grid_named(grid.name) != grid:
                raise ConfigError(
                    f"no file format stores the grid {grid.name!r}",
                    where=self.name,
                    hint=f"one of {', '.join(GRIDS)}",
                )

    def _check_mask(self) -> None:
        if self.swaps < 0 or self.polish < 0 or ((self.swaps or self.polish) and self.mask is None):
            raise ConfigError(
                "swaps and steps of polish are at least 0, and of use to a method with a mask",
                where=f"{self.name}: swaps, polish",
                hint="name sparsegpt, wanda, magnitude or joint",
            )
        if self.mask is None:
            self.rule_on(self.grid)
            return
        if self.rule is not Round:
            raise ConfigError("kept weights can only be rounded", where=f"{self.name}: rule")
        if self.grid is not None and not self.grid.has_zero:
            able = ", ".join(name for name, grid in GRIDS.items() if grid.has_zero)
            raise ConfigError(
                f"{self.grid.name} cannot hold a weight of exactly 0, so nothing stays pruned on it",
                where=f"{self.name}: grid",
                hint=f"one of {able}",
            )
