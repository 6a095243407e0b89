"""The mean, and a step of momentum beyond it that control variates correct for who happened to be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.aggregate.aggregator import Memory, ordered, shares
from edgetune.aggregate.mean import Mean
from edgetune.core.errors import ConfigError
from edgetune.core.part import GRADIENTS, RESIDUALS, STEPPED
from edgetune.core.update import Contribution, Dense, Update

LEAST_RATE = 1e-4
"""What the server's rate decays to."""


@dataclass(frozen=True, slots=True)
class Controlled(Mean):
    """Federated averaging with momentum at the server, and a control variate for every device, kept there as well.

        D = sum_k p_k D_k,   p_k = n_k / sum n over the devices that answered, D_k the change of device k
        v <- b v + (1 - b) D + sum_k p_k (c - c_k);   w <- w + D + r v;   r <- max(1e-4, r decay)
        c <- c + sum_k q_k (D_k - c_k);   c_k <- D_k          q_k = n_k / sum n over all devices

    c_k is what a device last sent, at first 0, and c = sum_k q_k c_k over all devices: if all answer, the correction is
    0. It is SCAFFOLD's, c_k <- c_k - c + (D_k + c - c_k), with the server adding c - c_k on the device's behalf, so
    that nothing more travels and devices remember nothing. Everything is a change of weights: rates and numbers of
    local steps have no part. With a rate of 0 it is the mean, bit for bit.

    The reference code takes for D the difference of two rounds' changes, adds D_k - c to c_k, though no device was
    corrected, and weighs c by steps, so that c_k grows without bound and c is not their sum.

    Args:
        by_examples: weight devices by their number of training examples; else alike.
        rate: r of the first round, at least 0.
        momentum: b, in [0, 1).
        decay: of r from round to round, in (0, 1].
        control: whether there are control variates; without, c and c_k are 0.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: a change's numbers for every device of the federation, at the server and beside its ledger.
    Source: Che et al. 2023, arXiv:2310.15080; llm-eff/FedPepTAO, fsgdm.py; Karimireddy et al. 2020, arXiv:1910.06378.
    """

    rate: float = 0.05
    momentum: float = 0.9
    decay: float = 0.99
    control: bool = True
    name: ClassVar[str] = "controlled"
    options: ClassVar[Mapping[str, str]] = {
        **Mean.options,
        "server_rate": "rate",
        "server_momentum": "momentum",
        "server_decay": "decay",
        "control": "control",
    }

    def __post_init__(self) -> None:
        if not (0 <= self.rate < float("inf") and 0 <= self.momentum < 1 and 0 < self.decay <= 1):
            raise ConfigError(
                "the server's rate must be at least 0, its momentum at least 0 and below 1, its decay above 0 and at "
                f"most 1, not {self.rate}, {self.momentum}, {self.decay}"
            )

    @property
    def gives(self) -> frozenset[str]:
        """A step of the server."""
        return frozenset({STEPPED})

    @property
    def needs(self) -> frozenset[str]:
        """Dense changes."""
        return frozenset({GRADIENTS})

    @property
    def refuses(self) -> frozenset[str]:
        """Factors whose product is already in the base."""
        return frozenset({RESIDUALS})

    def start(self, state: Update) -> Memory:
        """Return `control.rounds` int64 [] and `control.v.NAME`, float32 like the tensor."""
        found = {"control.rounds": torch.zeros((), dtype=torch.int64)}
        return found | {f"control.v.{name}": torch.zeros_like(one) for name, one in _tensors(state).items()}

    def enrol(self, state: Update, devices: Mapping[int, int]) -> Memory:
        """Return ids int64 [N], ascending, q float64 [N], and for every tensor c float64 and c_k float32 [N, ...]."""
        if not self.control:
            return {}
        ids = sorted(devices)
        held = torch.tensor([devices[id] if self.by_examples else 1 for id in ids], dtype=torch.float64)
        found = {"control.ids": torch.tensor(ids, dtype=torch.int64), "control.q": held / held.sum()}
        for name, one in _tensors(state).items():
            found[f"control.c.{name}"] = torch.zeros_like(one, dtype=torch.float64)
            found[f"control.c_k.{name}"] = one.new_zeros((len(ids), *one.shape))
        return found

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return D + r v."""
        mean, told = Mean.combine(self, contributions, state, memory), ordered(contributions)
        if not isinstance(mean, Dense):
            return mean
        decayed = max(LEAST_RATE, self.rate * self.decay ** int(memory["control.rounds"]))
        rate, found = min(self.rate, decayed), dict[str, torch.Tensor]()
        memory["control.rounds"] += 1
        for name, change in mean.tensors.items():
            v = memory[f"control.v.{name}"]
            v.mul_(self.momentum).add_(change, alpha=1 - self.momentum)
            if self.control:
                v.add_(self._correction(name, told, memory))
            found[name] = change + rate * v
        return Dense(found)

    def _correction(self, name: str, told: Sequence[Contribution], memory: Memory) -> torch.Tensor:
        """Return sum_k p_k (c - c_k) for a tensor, and remember what devices sent."""
        sent = {one.device: _tensors(one.update)[name] for one in told if name in _tensors(one.update)}
        parts = shares([one for one in told if one.device in sent], by_examples=self.by_examples)
        c, each, q = memory[f"control.c.{name}"], memory[f"control.c_k.{name}"], memory["control.q"]
        rows = torch.searchsorted(memory["control.ids"], torch.tensor(list(sent))).tolist()
        correction, moved = torch.zeros_like(c), torch.zeros_like(c)
        for row, part, change in zip(rows, parts, sent.values(), strict=True):
            correction += part * (c - each[row].double())
            moved += q[row] * (change.double() - each[row].double())
            each[row] = change
        c += moved
        return correction.float()


def _tensors(update: Update) -> Mapping[str, torch.Tensor]:
    return update.tensors if isinstance(update, Dense) else {}
