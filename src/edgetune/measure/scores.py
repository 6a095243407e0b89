"""Scores of one answer against one reference, as SQuAD defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from unicodedata import category

from edgetune.measure.words import spaced

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Called with answers and as many references: one number an answer, more is better."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WIDE = frozenset(
    one
    for one in map(chr, (*range(0x3001, 0x3040), 0x30FB, *range(0xFF01, 0xFF66)))
    if category(one)[0] in "PS"
)
"""Punctuation of Chinese and Japanese, each of which `spaced` makes a word."""


def token_f1(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Overlap of words, counted with repetition.

        F1 = 2 |answer and reference| / (|answer| + |reference|)

    Words are split at white space after lower case, without ASCII punctuation and English articles. Characters of
    scripts that are written without spaces are words of their own (`words.spaced`), and their punctuation does not
    count either. Where answer or reference has no word left, the score is 1 if both have none, else 0.

    Args:
        answers: what the model said.
        references: as many.

    Returns:
        One number in [0, 1] an answer.
    Source: Rajpurkar et al. 2016, arXiv:1606.05250; the SQuAD 2.0 evaluation script.
    """
    return [_f1(_words(answer), _words(other)) for answer, other in zip(answers, references, strict=True)]


def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where an answer has the words of its reference in order, else 0; words as in `token_f1`.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250.
    """
    return [float(_words(answer) == _words(other)) for answer, other in zip(answers, references, strict=True)]


def _words(text: str) -> list[str]:
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))
    return [word for word in spaced(plain).split() if word not in _WIDE]


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference))
