"""Words of texts in any script: at white space, and character by character where a script is written without it."""

from __future__ import annotations

from collections.abc import Iterable

import regex

SPACED = "words"
"""Name of the words of texts in scripts with spaces."""
MIXED = "words, and characters of scripts without spaces"
"""Name of the words where some text has other scripts."""

# Han, kana, Thai, Lao, Khmer, Myanmar and Tibetan, with the marks that belong to a character; and the punctuation that
# stands between Han and kana. Korean is written with spaces.
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\u3001-\u303f\u30fb\u30fc\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uff70]\p{M}*"
)


def spaced(text: str) -> str:
    """Put a space on both sides of every character of a script that is written without spaces.

    A text of other scripts stays as it is. Marks stay with their character, and letters between such characters stay
    one word: `2024年に` becomes `2024 年 に`.

    Source: the mixed segmentation of the CMRC 2018 evaluation script (Cui et al., arXiv 1810.07366), with further
        scripts.
    """
    return str(_UNSPACED.sub(r" \g<0> ", text))


def words_of(texts: Iterable[str]) -> str:
    """Return the name of what counts as a word in these texts: `SPACED`, or `MIXED` if a text has such characters."""
    return MIXED if any(_UNSPACED.search(text) for text in texts) else SPACED
