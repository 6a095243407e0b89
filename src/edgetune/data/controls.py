"""Control tokens: what structures a text for a model, and must not be mistaken in a record for what it spells."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgetune.core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
"""Private characters around the stand-in of a control token."""


class Controls:
    """The control tokens of a tokenizer: its special tokens, and others that a template ends turns with.

    Args:
        tokenizer: any tokenizer.
        others: texts of further tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, others: Sequence[str] = ()) -> None:
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special}
        texts = {text for text in {*special, *tokenizer.all_special_tokens, *others} if text}
        self.texts = tuple(sorted(texts, key=lambda text: (-len(text), text)))
        # The longest first: where two begin at one place, tokenizers take the longer one.
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or "(?!)")

    def quoted(self, text: str, fields: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return where the text of a control token stands inside a record's fields.

        Args:
            text: the rendered record.
            fields: places [start, end) of what the record says, ascending.
        """
        found = [match.span() for start, end in fields for match in self._pattern.finditer(text, start, end)]
        return tuple(found)

    def stand_in(self, text: str, quoted: Sequence[tuple[int, int]]) -> str:
        """Return a text with every control token replaced by its stand-in, except at the quoted places."""
        parts, at = list[str](), 0
        for start, end in (*quoted, (len(text), len(text))):
            parts += [self._pattern.sub(self._name, text[at:start]), text[start:end]]
            at = end
        return "".join(parts)

    def _name(self, match: re.Match[str]) -> str:
        return stand_in_name(self.texts.index(match.group()))


def unknown_characters(tokenizer: PreTrainedTokenizerBase, characters: Iterable[str]) -> frozenset[str]:
    """Return the characters that a tokenizer drops, or replaces by its unknown token.

    Args:
        tokenizer: any tokenizer.
        characters: one character each; white space, marks and control characters are not looked at.
    """
    shown = sorted(one for one in set(characters) if one.isprintable() and not one.isspace())
    shown = [one for one in shown if unicodedata.category(one)[0] != "M"]
    if not shown:
        return frozenset()
    encoded = tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return frozenset(one for one, ids in zip(shown, encoded, strict=True) if not ids or unknown in ids)


def stand_in_name(index: int) -> str:
    """Return the stand-in of the control token of this position."""
    return f"{_OPEN}{index}{_CLOSE}"


class LiteralEncoder:
    """Encodes texts that quote control tokens, through a copy of the tokenizer that knows these by stand-ins only.

    The whole text goes through the tokenizer once, so that everything around a quotation is encoded as ever.

    Args:
        tokenizer: a fast tokenizer.
        controls: its control tokens.

    Raises:
        DataError: a slow tokenizer, which cannot be told to leave its special tokens alone.
    Cost: one copy of the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, controls: Controls) -> None:
        from tokenizers import Tokenizer

        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(
                "a record holds the text of a control token, and this tokenizer would make the token of it",
                where=", ".join(map(repr, controls.texts[:3])),
                hint="leave such records out, or use a model with tokenizer.json",
            )
        description = json.loads(backend.to_str())
        names = {text: stand_in_name(index) for index, text in enumerate(controls.texts)}
        for token in description["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        description |= {"post_processor": None, "truncation": None, "padding": None}
        self._controls, self._copy = controls, Tokenizer.from_str(json.dumps(description))
        self._ids = {
            self._copy.token_to_id(name): backend.token_to_id(text)
            for text, name in names.items()
            if self._copy.token_to_id(name) is not None
        }
        # Some vocabularies can spell a control token out of its letters.
        self._spelt = {self._copy.token_to_id(text) for text in controls.texts} - {None}

    def __call__(self, text: str, quoted: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Return the ids of a text, without anything the tokenizer puts around it.

        Raises:
            DataError: the text holds the private characters that stand-ins are made of, or the vocabulary makes the
                control token of its letters too.
        """
        if _OPEN in text:
            raise DataError(f"a record holds the private character {_OPEN!r}", where=repr(text[:60]))
        encoded = self._copy.encode(self._controls.stand_in(text, quoted), add_special_tokens=False)
        if not self._spelt.isdisjoint(encoded.ids):
            what = "a record holds the text of a control token, and the vocabulary has no other token for it"
            raise DataError(what, where=repr(text[:60]), hint="leave such records out")
        return tuple(self._ids.get(index, index) for index in encoded.ids)
