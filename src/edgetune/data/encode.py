"""From records to padded batches of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError, DataError
from edgetune.data.prompts import Prompt
from edgetune.data.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded record.

    Args:
        input_ids: prompt and response.
        response_start: position of the first response token; at least 1, below the length.
    """

    input_ids: tuple[int, ...]
    response_start: int


def encode(record: Record, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int) -> Example:
    """Tokenise a record so that its ids are those of its full text, tokenised once.

        ids = tokens(prompt + response);  response_start = length of the common prefix of ids and tokens(prompt)

    A token that spans the border counts as response. The tokenizer's prefix (BOS) is added once, by the tokenizer or by
    the chat template, never by both. Where the text is too long, the response keeps what the prompt leaves free but at
    least half of `max_tokens`, and loses its end; then the prompt loses its middle, where the context stands, so
    that the head of the template and the start of the answer survive.

    Args:
        max_tokens: greatest number of ids, at least 2.

    Returns:
        An example with at least one prompt token and one response token.

    Raises:
        ConfigError: `max_tokens` below 2.
        DataError: the prompt or the response gives no token at all.
    """
    asked, answer = prompt(record, tokenizer)
    ids = _ids(asked + answer, tokenizer, prompt)
    start = _common_prefix(ids, _ids(asked, tokenizer, prompt))
    if not 0 < start < len(ids):
        missing = "response" if start else "prompt"
        raise DataError(f"the tokenizer makes no token of the {missing}", where=repr(record.instruction[:60]))
    return _shorten(ids, start, max_tokens)


def encode_prompt(
    record: Record, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int
) -> tuple[int, ...]:
    """Tokenise what a model is given before it answers; a prompt longer than `max_tokens` loses its middle."""
    if max_tokens < 1:
        raise ConfigError(f"{max_tokens} tokens hold no prompt", hint="leave room beside the new tokens")
    asked, _ = prompt(record, tokenizer)
    return _without_middle(_ids(asked, tokenizer, prompt), max_tokens)


def encode_all(
    records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int
) -> list[Example]:
    """Encode every record, in order."""
    return [encode(record, tokenizer, prompt, max_tokens) for record in records]


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad examples on the right to the longest of them.

    Args:
        examples: at least one.
        pad_id: any valid token id; padding is masked and carries no label.

    Returns:
        int64 [batch, length] ids, mask and labels; the prompt and the padding are labelled -100.

    Raises:
        DataError: no examples.
    """
    if not examples:
        raise DataError("a batch needs at least one example")
    shape = (len(examples), max(len(example.input_ids) for example in examples))
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        tokens, start = torch.tensor(example.input_ids, dtype=torch.int64), example.response_start
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, start : len(tokens)] = tokens[start:]
    return Batch(ids, mask, labels)


def batches(
    examples: Sequence[Example], batch_size: int, pad_id: int, *, sort_by_length: bool = True
) -> Iterator[Batch]:
    """Yield padded batches of all examples, for evaluation.

    Args:
        batch_size: at least 1; the last batch may be smaller.
        sort_by_length: longest first, so that little is padded and a lack of memory shows at once; else in order.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}", hint="use at least 1")
    ordered = sorted(examples, key=lambda example: -len(example.input_ids)) if sort_by_length else examples
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], pad_id)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with: the pad token, else the end of sequence, else 0 (padding is masked everywhere)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    plain = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not prompt.add_special_tokens:
        return plain
    # Only what the tokenizer puts in front: the response brings its own end.
    dressed = tuple(tokenizer(text, verbose=False)["input_ids"])
    front = next((n for n in range(len(dressed)) if dressed[n : n + len(plain)] == plain), 0)
    return dressed[:front] + plain


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    shared = min(len(first), len(second))
    return next((n for n in range(shared) if first[n] != second[n]), shared)


def _shorten(ids: tuple[int, ...], start: int, max_tokens: int) -> Example:
    if max_tokens < 2:
        raise ConfigError(f"{max_tokens} tokens hold no prompt and response", hint="use a greater length")
    kept = min(len(ids) - start, max(max_tokens - start, max_tokens // 2))
    head = _without_middle(ids[:start], max_tokens - kept)
    return Example(head + ids[start : start + kept], len(head))


def _without_middle(ids: tuple[int, ...], room: int) -> tuple[int, ...]:
    if len(ids) <= room:
        return ids
    tail = room // 2
    return ids[: room - tail] + ids[len(ids) - tail :]
