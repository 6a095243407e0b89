"""Completions that a student samples itself, so that it learns where it goes wrong and not where the data are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import stream
from edgetune.core.tuned import Tuned
from edgetune.data.encode import Example, collate
from edgetune.distil.reward import Reward
from edgetune.measure.evaluate import decode

Uniform = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OnPolicy:
    """With probability lambda the responses of a step are the student's own, sampled at its present weights.

        x_t ~ softmax(logits(x_<t) / temperature), over the whole vocabulary, until an end token or `max_new_tokens`

    The end token is learnt, what stands behind it and the prompt are not. The choice is one a step. No gradient passes
    through the sampling, and all points of a forward-only step see the same completions.

    Args:
        fraction: lambda, 0 to 1.
        temperature: of the sampling alone, > 0; the divergence knows none.
        max_new_tokens: at least 1.
        regenerate_every: steps whose completions are sampled together, at the weights of the first of them, at least 1:
            one pass over the weights a token then serves so many batches.

    Raises:
        ConfigError: if a number is out of range.
    Cost: `max_new_tokens` forward passes of one token with a key-value cache, every `regenerate_every` steps.
    Source: Agarwal et al. 2024, arXiv:2306.13649, Algorithm 1, which samples anew in every step.
    """

    fraction: float
    temperature: float = 0.9
    max_new_tokens: int = 64
    regenerate_every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigError(f"a share is between 0 and 1, not {self.fraction}", where="on_policy")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"a temperature is above 0, not {self.temperature}", where="temperature")
        if self.max_new_tokens < 1 or self.regenerate_every < 1:
            raise ConfigError("a completion has at least one token, and serves at least one step")

    def batches(
        self,
        given: Iterator[Batch],
        tuned: Tuned,
        *,
        ends: frozenset[int],
        vocabulary: int,
        pad_id: int,
        seed: int,
        device: int,
        first: int,
        reward: Reward | None = None,
    ) -> Iterator[Batch]:
        """Yield batches for ever, some with the student's responses in place of their own.

        Args:
            given: the data's.
            tuned: the student; its weights at the time when a batch is asked for are those that sample.
            ends: tokens that end a response.
            vocabulary: tokens that teacher and student both have; no other is sampled.
            pad_id: the padding token.
            seed: the run's; with device and step it fixes every choice.
            device: whose records they are.
            first: number of the first step, from 0.
            reward: scores what was sampled.

        Raises:
            ModelError: if the model has no key-value cache.
        """
        for step in itertools.count(first, self.regenerate_every):
            window = list(itertools.islice(given, self.regenerate_every))
            draws = [stream(seed, "on-policy", device, step + index) for index in range(len(window))]
            own = [index for index, draw in enumerate(draws) if draw.random() < self.fraction]
            prompts = [prompts_of(window[index]) for index in own]
            uniform = [
                draws[index].random((len(rows), self.max_new_tokens))
                for index, rows in zip(own, prompts, strict=True)
            ]
            if own:
                said = self.sample(
                    tuned.model, list(itertools.chain(*prompts)), np.concatenate(uniform), ends, vocabulary
                )
                wanted = [response for index in own for response in responses_of(window[index])]
                better = reward.advantages(said, wanted) if reward else None
                for index, rows in zip(own, prompts, strict=True):
                    some, said = said[: len(rows)], said[len(rows) :]
                    window[index] = _completed(rows, some, pad_id)
                    if better is not None:
                        window[index] = replace(window[index], advantages=better[: len(rows)])
                        better = better[len(rows) :]
            yield from window

    @torch.no_grad()
    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        uniform: Uniform,
        ends: frozenset[int],
        vocabulary: int,
    ) -> list[list[int]]:
        """Return a completion of every prompt, with its end token if it has one.

        Args:
            model: the student.
            prompts: token ids.
            uniform: numbers in [0, 1) [prompts, max_new_tokens], of which each decides a token.
            ends: as in `batches`.
            vocabulary: as in `batches`.

        Raises:
            ModelError: if the model has no key-value cache.
        """
        if not prompts:
            return []
        pick = drawn(uniform, self.temperature, vocabulary)
        found = decode(model, prompts, self.max_new_tokens, ends, pick=pick, keep_end=True)
        if found is None:
            raise ModelError(
                "this student has no key-value cache, which its own completions need",
                hint="--set distillation.on_policy=0 learns on the data's responses",
            )
        return found


def drawn(uniform: Uniform, temperature: float, vocabulary: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what samples a token of every row, by inverting the distribution at the next column of `uniform`.

    token = the first v with sum_{u <= v} p_u > uniform
    """
    columns = itertools.count()

    def pick(logits: torch.Tensor) -> torch.Tensor:
        shares = (logits[:, :vocabulary].double() / temperature).softmax(-1).cumsum(-1)
        chance = torch.from_numpy(uniform[:, next(columns)].copy()).to(shares.device).unsqueeze(1)
        return torch.searchsorted(shares, chance * shares[:, -1:], right=True)[:, 0].clamp(
            max=shares.shape[1] - 1
        )

    return pick


def prompts_of(batch: Batch) -> list[list[int]]:
    """Return the prompt of every record: the tokens before its first label."""
    found = []
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        start = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
        found.append(ids[:start])
    return found


def responses_of(batch: Batch) -> list[list[int]]:
    """Return the response of every record: its labelled tokens."""
    return [labels[labels != IGNORED].tolist() for labels in batch.labels]


def _completed(prompts: Sequence[Sequence[int]], said: Sequence[Sequence[int]], pad_id: int) -> Batch:
    pairs = zip(prompts, said, strict=True)
    return collate([Example((*prompt, *words), len(prompt)) for prompt, words in pairs], pad_id)
