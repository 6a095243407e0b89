"""A reward beside the teacher: sampled responses that score above the others of their sampling become likelier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from edgetune.core.errors import ConfigError
from edgetune.measure.rouge import rouge_l
from edgetune.measure.scores import Score, exact_match, token_f1


def rouge(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Rouge-L F1 of every answer, 0 to 1; see `measure.rouge.rouge_l`."""
    return [rouge_l([one], [other]) / 100 for one, other in zip(answers, references, strict=True)]


REWARDS: dict[str, Score] = {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge}
"""Rewards by name."""


@dataclass(frozen=True, slots=True)
class Reward:
    """The objective with a reward for what the student sampled.

        maximise  (1 - a) E_y~Q[r(y)] - a E_y~Q[D(P, Q)(y)]

    Its first gradient is that of REINFORCE, (1 - a) A_b sum_t grad log Q(y_bt), with a leave-one-out baseline over the
    n responses that were sampled together, which keeps it unbiased:

        A_b = r_b - mean_(other b) r

    Both terms are divided by the response tokens of the batch, as the divergence alone is. A forward-only step takes
    the same surrogate at its two points, whose difference is the slope of both. The likelihoods are at a temperature of
    1: sampled at another one, they are weighted as if they had not been.

    Args:
        score: r, of answers and references.
        weight: 1 - a, above 0, at most 1.
        text: what a response's tokens say.
        digest: names the score.

    Raises:
        ConfigError: if the weight is out of range.
    Source: Agarwal et al. 2024, arXiv:2306.13649, section 3.2; leave-one-out: Kool et al. 2019; Ahmadian et al. 2024,
        arXiv:2402.14740.
    """

    score: Score
    weight: float
    text: Callable[[Sequence[int]], str]
    digest: str

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ConfigError(
                f"a reward's weight is above 0 and at most 1, not {self.weight}", where="reward_weight"
            )

    def advantages(self, said: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return A of responses that were sampled together, float32 [responses]; 0 of a single one.

        Args:
            said: tokens of the responses.
            wanted: those of the data's responses to the same prompts.

        Raises:
            ConfigError: if the score does not give one finite number a response.
        """
        scores = list(self.score(list(map(self.text, said)), list(map(self.text, wanted))))
        rewards = torch.tensor(scores, dtype=torch.float32)
        if len(rewards) != len(said) or not bool(torch.isfinite(rewards).all()):
            raise ConfigError(
                f"the reward gave {len(rewards)} numbers for {len(said)} responses, or no number"
            )
        if len(rewards) < 2:
            return torch.zeros_like(rewards)
        return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)
