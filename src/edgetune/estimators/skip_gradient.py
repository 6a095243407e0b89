"""The gradient along skip connections: one forward pass, an outer product a layer, and no pass backwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch, Objective, response_loss
from edgetune.core.part import WRITES
from edgetune.core.skips import rows_alone, skips_alone
from edgetune.core.update import Estimate
from edgetune.estimators.backprop import Backprop


@contextmanager
def along_skips(model: nn.Module, objective: Objective, batch: Batch) -> Iterator[None]:
    """While entered, gradients go along skip connections alone (`core.skips`).

    Args:
        model: a causal language model.
        objective: of the loss on responses the rows that it looks at are kept, of any other objective all.
        batch: the records that it is of.
    """
    said = nn.functional.pad(batch.labels[:, 1:] != IGNORED, (0, 1))
    rows = rows_alone(model, said) if objective is response_loss else nullcontext()
    with skips_alone(model), rows, torch.enable_grad():
        yield


@dataclass(frozen=True, slots=True)
class SkipGradient(Backprop):
    """The part of the gradient that reaches weights over skip connections, past every block behind them.

        h_L = h_0 + sum_l B_l x_l,   e_t = dL / dh_Lt:   estimate of dL/dB_l = sum_t e_t x_lt^T

    In the exact gradient e_t is multiplied by the Jacobians I + J of all blocks behind the layer; here they are I. The
    gradients of a head of its own and of the last feed-forward layer are exact. An estimate that is biased and
    has no variance but the batch's, where slopes along directions are unbiased and have that of the directions.

    Cost: a forward pass, in which the inputs of the layers that write are kept until the loss is known, of the loss on
        responses at the positions that it looks at, and for each layer a product as large as its own. Counted as two
        passes; 1.36 as measured (docs/results/bench.md).
    Source: this package; the error that reaches layers directly: direct feedback alignment, Nokland 2016,
        arXiv:1609.01596, whose feedback is random; residual networks as sums: Veit et al. 2016, arXiv:1605.06431.
    """

    name: ClassVar[str] = "skip_gradient"

    @property
    def passes(self) -> int:
        """Two: the second one is the products of the layers that write, of which a block has a part."""
        return 2

    @property
    def needs(self) -> frozenset[str]:
        """Weights that skip connections reach."""
        return frozenset({WRITES})

    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss and the estimate; `keys` are not used."""
        with along_skips(tuned.model, objective, batch):
            return Backprop.__call__(self, tuned, objective, batch)
