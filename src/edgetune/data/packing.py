"""Plain text as sequences of full length without padding, as a model that was pretrained on text has seen it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError
from edgetune.data.encode import front_of
from edgetune.data.lines import lines_of
from edgetune.data.streams import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"
"""A line of its own between documents of a text file."""
PIECE = 1 << 14
"""Characters of a document that are drawn, and tokenised, at a time."""


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of a text file as they stand, blank lines within included; those without a word are left out.

    Raises:
        DataError: the file cannot be read, or is not UTF-8 text.
    """
    held = list[str]()
    for _, line in lines_of(path):
        if line.strip() == SEPARATOR:
            yield from _said(held)
            held = []
        else:
            held.append(line)
    yield from _said(held)


def _said(lines: Sequence[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, length: int, tokens: int, seed: int
) -> list[tuple[int, ...]]:
    """Tokenise documents in random order, one behind another, and cut them into sequences of one length.

    Every sequence begins with what the tokenizer puts in front of a text (BOS), and so does every document in it: the
    outsize activations that many models have there are then those of real use.

    Args:
        texts: documents; of a long one a piece of `PIECE` characters is drawn at a time.
        length: of a sequence, above that of the front.
        tokens: wanted in all; the sequences are as many as that takes, or as there are.
        seed: of the order.

    Returns:
        Sequences of `length` ids; one shorter sequence where there is too little for one of full length; none where
        there is no token.

    Raises:
        ConfigError: a length that holds the front only.
    Cost: the tokenising of about as many tokens as are wanted.
    """
    front = front_of(tokenizer)
    room = length - len(front)
    if room < 1:
        raise ConfigError(f"sequences of {length} tokens hold no text", hint="use a greater length")
    pieces = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    wanted = -(-tokens // length)
    ids, found = list[int](), list[tuple[int, ...]]()
    for place in stream(seed, "packing").permutation(len(pieces)):
        said = tokenizer(pieces[int(place)], add_special_tokens=False, verbose=False)["input_ids"]
        ids += [*(front if ids else ()), *said]
        while len(ids) >= room and len(found) < wanted:
            found.append((*front, *ids[:room]))
            ids = ids[room:]
        if len(found) == wanted:
            break
    return found or ([(*front, *ids)] if ids else [])
