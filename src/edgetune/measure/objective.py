"""Objectives without a gradient: minus the score of greedy answers, which forward-only methods can minimise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError
from edgetune.core.part import DIFFERENTIATED, SLOPES, Part
from edgetune.measure.evaluate import generate
from edgetune.measure.scores import Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Answers(Part):
    """Minus the mean score of greedy answers to a batch's prompts.

        L(w) = - mean_b score(answer_b(w), reference_b)

    It is piecewise constant: a perturbation that changes no answer has the slope 0, so eps must be larger than for the
    loss.

    Args:
        score: for example `scores.token_f1`, `scores.exact_match`, or any function of answers and references. A run's
            configuration names it by module and name.
        max_new_tokens: length of an answer, at least 1.

    Raises:
        ConfigError: if no token may be generated.
    Source: Malladi et al. 2023, arXiv:2305.17333, section 3.3.
    """

    score: Score
    max_new_tokens: int = 32
    options: ClassVar[Mapping[str, str]] = {"answer_tokens": "max_new_tokens"}

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"an answer needs at least one token, not {self.max_new_tokens}")

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "a score of answers"

    @property
    def needs(self) -> frozenset[str]:
        """Slopes: it has no gradient to propagate back."""
        return frozenset({SLOPES})

    @property
    def refuses(self) -> frozenset[str]:
        """Derivatives: it is constant but for jumps."""
        return frozenset({DIFFERENTIATED})

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> ScoredAnswers:
        """Return the objective for a model with this tokenizer."""
        return ScoredAnswers(self, tokenizer)


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """`Answers` with a tokenizer: an objective, a mean over records (see `core.batch.Objective`).

    Args:
        answers: what is scored.
        tokenizer: decodes answers and references.
    """

    answers: Answers
    tokenizer: PreTrainedTokenizerBase
    per_record: ClassVar[bool] = True

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return minus the mean score, float32 []; otherwise as `records`."""
        scores, _ = self.records(model, batch)
        return scores.mean()

    def records(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return minus the score of every record, and its weight in their mean, 1.

        Args:
            model: a causal language model with a key-value cache.
            batch: prompts, and references where labels stand.

        Returns:
            float32 [batch] and int64 [batch].

        Raises:
            ConfigError: if the score does not give one number an answer.
        Cost: one greedy generation a record.
        """
        prompts, references = [], []
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            said = labels != IGNORED
            prompts.append([int(token) for token in ids[: int(said.int().argmax())]])
            references.append(str(self.tokenizer.decode(labels[said], skip_special_tokens=True)).strip())
        given = generate(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.answers.max_new_tokens,
            batch_size=len(prompts),
        )
        scores = list(self.answers.score(given, references))
        if len(scores) != len(given):
            raise ConfigError(f"the score gave {len(scores)} numbers for {len(given)} answers")
        return -torch.tensor(scores, dtype=torch.float32), torch.ones(len(scores), dtype=torch.int64)
