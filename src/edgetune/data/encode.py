"""From records to padded batches of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError, DataError
from edgetune.data.controls import Controls, LiteralEncoder
from edgetune.data.records import Record
from edgetune.data.turns import Frame, Prompt, Renderer, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_AT_ONCE = 256
"""Texts that the tokenizer is given at a time."""


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded record.

    Args:
        input_ids: prompt and response.
        response_start: position of the first response token; at least 1, below the length.
    """

    input_ids: tuple[int, ...]
    response_start: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One record as text and as all its token ids.

    Args:
        turn: the text.
        example: the ids of the whole text, however long.
        dropped: the oldest exchanges of a history are not in the text.
    """

    turn: Turn
    example: Example
    dropped: bool = False


def encode(record: Record, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int) -> Example:
    """Encode one record; see `encode_all`. Opening a chat template costs 0.1 s, so encode many at once."""
    return encode_all([record], tokenizer, prompt, max_tokens)[0]


def encode_prompt(
    record: Record, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int
) -> tuple[int, ...]:
    """Tokenise what a model is given before it answers; a prompt longer than `max_tokens` loses its middle."""
    if max_tokens < 1:
        raise ConfigError(f"{max_tokens} tokens hold no prompt", hint="leave room beside the new tokens")
    with prompt.renderer(tokenizer) as renderer:
        (turn,) = renderer.turns([record])
    ids = _Tokens(tokenizer, prompt, renderer.frame)([turn], [turn.prompt])[0]
    return _without_middle(ids, max_tokens)


def encode_all(
    records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int
) -> list[Example]:
    """Encode every record, in order, and shorten what is longer than `max_tokens` (see `shorten`).

    Args:
        max_tokens: greatest number of ids, at least 2.

    Returns:
        Examples with at least one prompt token and one response token each.

    Raises:
        ConfigError: `max_tokens` below 2, or the prompt template does not carry what a record says.
        DataError: the prompt or the response gives no token at all.
    """
    with prompt.renderer(tokenizer) as renderer:
        encoded = encode_whole(list(records), tokenizer, prompt, renderer)
    return [shorten(one.example, max_tokens) for one in encoded]


def encode_whole(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, prompt: Prompt, renderer: Renderer
) -> list[Encoded]:
    """Tokenise records so that the ids of each are those of its full text, tokenised once.

        ids = tokens(prompt + response);  response_start = length of the common prefix of ids and tokens(prompt)

    A token that spans the border counts as response. The tokenizer's prefix (BOS) is added once, by the tokenizer or by
    the chat template, never by both. Where a record holds the text of a control token (`Turn.quoted`), that text is
    encoded, not the token. A text without a prompt is a response from its second id at the latest: nothing foretells
    the first.

    Args:
        renderer: of the same prompt and tokenizer.

    Raises:
        ConfigError: the prompt template does not carry what a record says.
        DataError: the prompt or the response gives no token at all, or a quoted control token cannot be encoded.
    """
    turns = renderer.turns(records)
    tokens = _Tokens(tokenizer, prompt, renderer.frame)
    whole = tokens(turns, [turn.prompt + turn.response for turn in turns])
    asked = tokens(turns, [turn.prompt for turn in turns])
    encoded = []
    for turn, ids, front in zip(turns, whole, asked, strict=True):
        start = max(1, len(front)) if turn.plain else common_prefix(ids, front)
        if not 0 < start < len(ids):
            missing = "response" if start else "prompt"
            raise DataError(f"the tokenizer makes no token of the {missing}", where=repr(turn.prompt[-60:]))
        encoded.append(Encoded(turn, Example(ids, start)))
    return encoded


class _Tokens:
    """A tokenizer for texts of turns: with the prefix that the prompt asks for, quoted control tokens as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, frame: Frame) -> None:
        self._tokenizer, self._frame = tokenizer, frame
        self._prefixed = prompt.add_special_tokens
        self._literal: LiteralEncoder | None = None

    def __call__(self, turns: Sequence[Turn], texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each text, a beginning of its turn."""
        plain: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = list(texts[start : start + _AT_ONCE])
            plain += self._tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        dressed = self._prefixed or any(turn.plain for turn in turns)
        front = front_of(self._tokenizer) if dressed else ()
        return [
            (front if self._prefixed or turn.plain else ())
            + (self._quoting(turn, text) if turn.quoted else tuple(ids))
            for turn, text, ids in zip(turns, texts, plain, strict=True)
        ]

    def _quoting(self, turn: Turn, text: str) -> tuple[int, ...]:
        if self._literal is None:
            self._literal = LiteralEncoder(self._tokenizer, Controls(self._tokenizer, self._frame.ends))
        return self._literal(text, [(start, end) for start, end in turn.quoted if end <= len(text)])


def front_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what a tokenizer puts in front of a text by itself; its end is left to the response."""
    plain = tuple(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    dressed = tuple(tokenizer("a", verbose=False)["input_ids"])
    before = next((n for n in range(len(dressed)) if dressed[n : n + len(plain)] == plain), 0)
    return dressed[:before]


def encode_fitting(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    renderer: Renderer,
    max_tokens: int,
) -> list[Encoded]:
    """Tokenise records as `encode_whole` does, without the oldest exchanges of a history that is too long.

    A history is too long where the prompt takes more of `max_tokens` than `shorten` would leave it.

    Cost: one tokenising a round; in each, what is still too long loses an exchange.
    """
    encoded = encode_whole(records, tokenizer, prompt, renderer)
    left = list(enumerate(records))
    while left := [
        (at, shorter)
        for at, record in left
        if _prompt_is_cut(encoded[at].example, max_tokens)
        and (shorter := record.without_oldest()) is not record
    ]:
        again = encode_whole([record for _, record in left], tokenizer, prompt, renderer)
        for (at, _), one in zip(left, again, strict=True):
            encoded[at] = replace(one, dropped=True)
    return encoded


def _prompt_is_cut(example: Example, max_tokens: int) -> bool:
    response = len(example.input_ids) - example.response_start
    return example.response_start + min(response, max_tokens // 2) > max_tokens


def shorten(example: Example, max_tokens: int) -> Example:
    """Cut an example to `max_tokens` ids.

    The response keeps what the prompt leaves free but at least half of `max_tokens`, and loses its end; then the prompt
    loses its middle, where the context stands, so that the head of the template and the start of the answer survive.

    Raises:
        ConfigError: `max_tokens` below 2.
    """
    if max_tokens < 2:
        raise ConfigError(f"{max_tokens} tokens hold no prompt and response", hint="use a greater length")
    ids, start = example.input_ids, example.response_start
    kept = min(len(ids) - start, max(max_tokens - start, max_tokens // 2))
    head = _without_middle(ids[:start], max_tokens - kept)
    return Example(head + ids[start : start + kept], len(head))


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
    ids, mask, labels = (
        np.full(shape, pad_id, np.int64),
        np.zeros(shape, np.int64),
        np.full(shape, IGNORED, np.int64),
    )
    for row, example in enumerate(examples):
        tokens, start = example.input_ids, example.response_start
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels))


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


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the longest beginning that both share."""
    shared = min(len(first), len(second))
    return next((n for n in range(shared) if first[n] != second[n]), shared)


def _without_middle(ids: tuple[int, ...], room: int) -> tuple[int, ...]:
    if len(ids) <= room:
        return ids
    tail = room // 2
    return ids[: room - tail] + ids[len(ids) - tail :]
