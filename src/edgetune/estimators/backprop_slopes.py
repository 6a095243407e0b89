"""The exact gradient as slopes along all directions of a pool: K numbers, and no gradient of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from edgetune.core.batch import Batch, Objective
from edgetune.core.part import ALL_AT_ONCE, ALL_WEIGHTS, TENSORS
from edgetune.core.recomputed import recomputed
from edgetune.estimators.pool_slopes import PoolSlopes


@dataclass(frozen=True, slots=True)
class BackpropSlopes(PoolSlopes):
    """The slope of the loss along every direction of a pool, by back-propagation of errors.

        G_l = sum_t e_t x_t^T,   estimate = (1 / K) sum_k <G, z_k> z_k

    Descent in the subspace that the pool spans. Along a pool of rank one errors pass through matrices as they are
    stored, and are folded where they leave (`tune.folded_own`): nothing in the size of a matrix is made.

    Args:
        recompute: whether blocks compute again in the backward pass what they would have kept.

    Cost: a forward pass, an error's product with each matrix, 64 numbers a token and layer (of K = 4096), and
        activations of one block and the inputs of all; with recompute = False those of all blocks.
    Source: training in a random subspace: Li et al. 2018, arXiv:1804.08838; of language models: Aghajanyan et al.
        2021, arXiv:2012.13255; K numbers of a device: Ferret, Shu et al. 2024, arXiv:2409.06277, which projects
        dense updates.
    """

    recompute: bool = True
    name: ClassVar[str] = "backprop_slopes"
    options: ClassVar[Mapping[str, str]] = {"recompute": "recompute"}

    @property
    def passes(self) -> int:
        """Three, as of `Backprop`, and one more where blocks compute again."""
        return 3 + self.recompute

    @property
    def needs(self) -> frozenset[str]:
        """A pool, over tensors that gradients reach."""
        return frozenset({ALL_AT_ONCE, TENSORS})

    @property
    def refuses(self) -> frozenset[str]:
        """All weights: of vectors and of tables that a module does more with, a gradient would be formed."""
        return frozenset({ALL_WEIGHTS})

    def along(self, tuned: Any, objective: Objective, batch: Batch) -> AbstractContextManager[object]:
        """Return what lets blocks compute again, if they do."""
        return recomputed(tuned.model) if self.recompute else nullcontext()
