"""What a model is worth on records no device saw: loss, perplexity and greedy answers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgetune.core.batch import Batch, response_losses
from edgetune.core.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], object]
"""Called with (answers ready, answers wanted) after every batch."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Quality on held-out records.

    Args:
        loss: mean cross-entropy over all response tokens, nats.
        perplexity: exp(loss).
        tokens: number of response tokens.
    """

    loss: float
    perplexity: float
    tokens: int


def held_out_loss(model: nn.Module, batches: Iterable[Batch]) -> HeldOut:
    """Mean next-token cross-entropy over all response tokens of all batches.

        loss = sum_batches sum_records loss_b / number of response tokens

    The result does not depend on how records are batched, up to float32 rounding. NaN and infinity are passed on.

    Args:
        model: a causal language model; put into evaluation mode while measured, then back.
        batches: at least one response token in all.

    Raises:
        DataError: no response tokens at all.
    Cost: one forward pass a batch, no gradients.
    """
    device, total, tokens = _device(model), 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                summed, counts = response_losses(model, batch.to(device))
                total += float(summed.double().sum())
                tokens += int(counts.sum())
    finally:
        model.train(was_training)
    if not tokens:
        raise DataError("no response token to measure the loss on", hint="hold out at least one record")
    loss = total / tokens
    return HeldOut(
        loss, math.exp(loss) if loss < 700 else math.inf if not math.isnan(loss) else math.nan, tokens
    )


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Progress | None = None,
) -> list[str]:
    """Answer prompts greedily, in batches padded on the left, with a key-value cache.

        x_{t+1} = argmax_v logits(x_1 ... x_t)_v   until an end token or `max_new_tokens`

    No sampling parameter or penalty of the model's generation config applies. End tokens are those of the model's
    generation config, its config and the tokenizer. Models without a key-value cache (state-space and recurrent ones)
    answer one prompt after another, with what transformers has for them; models whose linear attention would sum over
    padding answer one after another too.

    Args:
        model: a causal language model of transformers, or any with a key-value cache.
        prompts: token ids, each at least one.
        max_new_tokens: at least 1.
        batch_size: at least 1; answers do not depend on it, except where two logits tie within rounding.
        on_progress: called with (answers ready, answers wanted) after every batch.

    Returns:
        The answers in the order of the prompts, without special tokens and outer white space.

    Raises:
        ConfigError: a number out of range, or a prompt and its answer exceed the model's context.
        DataError: an empty prompt.
        ModelError: a model that is none of transformers', without a key-value cache.
    """
    _check(model, prompts, max_new_tokens, batch_size)
    ends = end_tokens(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    at_once = 1 if "linear_attention" in (getattr(_config(model), "layer_types", None) or ()) else batch_size
    try:
        for start in range(0, len(order), at_once):
            chosen = order[start : start + at_once]
            rows = _answered(model, [prompts[index] for index in chosen], max_new_tokens, ends)
            for index, row in zip(chosen, rows, strict=True):
                answers[index] = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
            if on_progress is not None:
                on_progress(start + len(chosen), len(order))
    finally:
        model.train(was_training)
    return answers


@torch.no_grad()  # not inference mode: scratch of a perturbed forward pass outlives the call
def _answered(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    rows = decode(model, prompts, max_new_tokens, ends)
    if rows is None:
        rows = [_by_library(model, prompt, max_new_tokens, ends) for prompt in prompts]
    return rows


def _by_library(model: Any, prompt: Sequence[int], max_new_tokens: int, ends: frozenset[int]) -> list[int]:
    """Answer one prompt with the library's own loop, which knows every kind of state, without the model's settings."""
    import transformers

    if not hasattr(model, "generate"):
        raise ModelError("this model returned no key-value cache, which generation needs")
    own = model.generation_config
    settings: Any = transformers.GenerationConfig
    model.generation_config = settings(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0
    )
    try:
        ids = torch.tensor([list(prompt)], device=_device(model))
        answer: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids))[
            0, len(prompt) :
        ].tolist()
    finally:
        model.generation_config = own
    end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[:end]


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """Return the likeliest token of every row, int64 [rows]; `logits` float [rows, vocabulary]."""
    return logits.argmax(dim=-1)


def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: frozenset[int],
    *,
    pick: Callable[[torch.Tensor], torch.Tensor] = most_likely,
    keep_end: bool = False,
) -> list[list[int]] | None:
    """Answer prompts token by token with a key-value cache.

    Args:
        model: a causal language model.
        prompts: token ids, each at least one.
        max_new_tokens: at least 1; prompts and answers fit into the model's context.
        ends: tokens that end an answer.
        pick: chooses the next token of every row from logits, float [rows, vocabulary]; called once a token.
        keep_end: the token that ended an answer is its last.

    Returns:
        Token ids; None if the model has no such cache.
    """
    device, width = _device(model), max(map(len, prompts))
    accepted = inspect.signature(model.forward).parameters
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    cache: Any = None
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        if "position_ids" in accepted:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if cache is not None:
            options["past_key_values"] = cache
        out = model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            return None
        ids = pick(out.logits[:, -1]).unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        for row, token in enumerate(ids[:, 0].tolist()):
            if row in running and (keep_end or token not in ends):
                answers[row].append(token)
            if token in ends:
                running.discard(row)
        if not running:
            break
    return answers


def _check(model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(
            f"cannot generate {max_new_tokens} tokens in batches of {batch_size}", hint="use at least 1"
        )
    if any(not len(prompt) for prompt in prompts):
        raise DataError("a prompt without a token cannot be answered")
    context = getattr(_config(model), "max_position_embeddings", None)
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if context is not None and longest > context:
        raise ConfigError(
            f"a prompt and its answer need {longest} tokens, the model holds {context}",
            hint="shorten the prompts or max_new_tokens",
        )


def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every id that ends an answer: of the model's generation config, its config, and the tokenizer.

    Each may name one or several; what is not a token id (some configs say -1 for none) is left out.
    """
    ends: set[int] = set()
    config = getattr(model, "config", None)
    for holder in (getattr(model, "generation_config", None), config, _config(model), tokenizer):
        named = getattr(holder, "eos_token_id", None)
        listed = named if isinstance(named, (list, tuple)) else [named]
        ends.update(index for index in listed if type(index) is int and index >= 0)
    return frozenset(ends)


def _config(model: nn.Module) -> Any:
    """Return the configuration of the language model, which of a model of several kinds of input is a part."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
