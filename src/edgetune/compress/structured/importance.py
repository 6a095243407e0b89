"""What a group of weights is worth: scores by which structured pruning chooses, higher is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.evidence import Evidence, Hears
from edgetune.compress.structured.groups import Groups, Member, matrix
from edgetune.core.keys import stream


class Importance(Protocol):
    """A rule that gives every group of a block a number."""

    @property
    def hears(self) -> Hears:
        """What has to be measured on calibration text before."""

    def scores(self, groups: Groups, block: nn.Module, evidence: Evidence) -> torch.Tensor:
        """Return float32 [groups], at least 0.

        Args:
            groups: of the block.
            block: with its dense weights.
            evidence: what was measured, for this block.
        """


def summed(member: Member, saliency: torch.Tensor, *, signed: bool) -> torch.Tensor:
    """Sum a matrix's saliencies over each group: over a row or column first, then over the group's rows or columns.

    Args:
        member: the groups' rows or columns.
        saliency: float32 [outputs, inputs].
        signed: signs cancel inside a row or column; else every weight counts by its size.

    Returns:
        float32 [groups].
    """
    across = 1 - member.axis
    lines = saliency.sum(across).abs() if signed else saliency.abs().sum(across)
    return lines[member.index].sum(1)


@dataclass(frozen=True, slots=True)
class Taylor:
    """How much the loss moves when a group is taken away, to first order.

        vector: sum_lines |sum_line w g|,   element: sum |w g|,   g = dL/dw over the whole calibration text

    Args:
        signed: the vector form.
    Source: LLM-Pruner (arXiv 2305.11627), section 3.2; `vectorize` and `param_first` of the reference code.
    """

    signed: bool = False

    @property
    def hears(self) -> Hears:
        """The gradient of the whole text."""
        return Hears(gradient=True)

    def scores(self, groups: Groups, block: nn.Module, evidence: Evidence) -> torch.Tensor:
        """Return the sum over a group's members."""
        parts = []
        for member in groups.members:
            weights = matrix(block.get_submodule(member.path)).float()
            parts.append(summed(member, weights * evidence.gradients[member.path], signed=self.signed))
        return torch.stack(parts).sum(0)


@dataclass(frozen=True, slots=True)
class Fisher:
    """The same to second order, with the diagonal of the empirical Fisher matrix for the curvature.

        second: sum w^2 F,   mixed: sum |w g - 1/2 w^2 F|,   F = 1/N sum_i g_i^2 over single records

    Args:
        mixed: the mixed form.
    Source: LLM-Pruner, equations 4 and 5; `param_second` and `param_mix` of the reference code.
    """

    mixed: bool = False

    @property
    def hears(self) -> Hears:
        """The squared gradients of single records, with the gradient of the whole text for the mixed form."""
        return Hears(gradient=self.mixed, fisher=True)

    def scores(self, groups: Groups, block: nn.Module, evidence: Evidence) -> torch.Tensor:
        """Return the sum over a group's members."""
        parts = []
        for member in groups.members:
            weights = matrix(block.get_submodule(member.path)).float()
            saliency = weights.square() * evidence.fisher[member.path]
            if self.mixed:
                saliency = weights * evidence.gradients[member.path] - 0.5 * saliency
            parts.append(summed(member, saliency, signed=False))
        return torch.stack(parts).sum(0)


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The squared size of a group's weights: `sum w^2`, which knows no text."""

    @property
    def hears(self) -> Hears:
        """Nothing."""
        return Hears()

    def scores(self, groups: Groups, block: nn.Module, evidence: Evidence) -> torch.Tensor:
        """Return the sum over a group's members."""
        return torch.stack(
            [
                summed(member, matrix(block.get_submodule(member.path)).float().square(), signed=False)
                for member in groups.members
            ]
        ).sum(0)


@dataclass(frozen=True, slots=True)
class Contribution:
    """The energy of what a group adds to the residual stream, in shares of what its sub-module adds; no gradient.

        tr(W_g H_gg W_g^T) / tr(W H W^T),   H = 2/n X X^T of the reader's inputs

    For one channel that is the size of its column times the mean square of its activation: Wanda's score for a
    column, and 2SSP's neuron magnitude seen from the residual stream. A head counts as one
    group of columns.

    Source: the scores of Wanda (arXiv 2306.11695) and 2SSP (arXiv 2501.17771), for a group of columns.
    """

    @property
    def hears(self) -> Hears:
        """The second moment of what the readers read."""
        return Hears(moments=True)

    def scores(self, groups: Groups, block: nn.Module, evidence: Evidence) -> torch.Tensor:
        """Return a group's share."""
        weights = matrix(block.get_submodule(groups.reader)).float()
        moment, columns = evidence.moments[groups.reader], groups.columns.to(weights.device)
        parts = weights[:, columns.flatten()].T.reshape(*columns.shape, -1)
        inner = moment[columns[:, :, None], columns[:, None, :]]
        energy = torch.einsum("gio,gij,gjo->g", parts, inner, parts).clamp(min=0)
        return energy / energy.sum().clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, slots=True)
class Random:
    """Numbers by chance, the floor that any score has to beat.

    Args:
        seed: of the draw; every kind of group in every block has numbers of its own.
    """

    seed: int = 0

    @property
    def hears(self) -> Hears:
        """Nothing."""
        return Hears()

    def scores(self, groups: Groups, block: nn.Module, evidence: Evidence) -> torch.Tensor:
        """Return uniform numbers in [0, 1)."""
        drawn = stream(self.seed, "prune", str(evidence.layer), groups.reader).random(groups.count)
        return torch.from_numpy(drawn).float()


RULES: Mapping[str, Importance] = {
    "activation": Contribution(),
    "first": Taylor(),
    "vector": Taylor(signed=True),
    "second": Fisher(),
    "mixed": Fisher(mixed=True),
    "magnitude": Magnitude(),
    "random": Random(),
}
"""By public name."""


def score_blocks(
    model: PreTrainedModel, kinds: Sequence[Sequence[Groups]], rule: Importance, evidence: Sequence[Evidence]
) -> list[list[torch.Tensor]]:
    """Return the scores of all groups, by block and kind, float32 on the CPU."""
    return [
        [rule.scores(groups, block, found).detach().cpu() for groups in own]
        for block, own, found in zip(decoder_blocks(model), kinds, evidence, strict=True)
    ]
