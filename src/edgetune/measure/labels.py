"""Classification: which of a few labels an answer says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.measure.words import spaced

MOST_LABELS, MOST_WORDS = 20, 5
"""A label has a few words, and there are a few of them."""
_WORD = re.compile(r"-?\d+(?:\.\d+)?|\w+")
EACH = 4
"""Times a label occurs on average at least."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a classification.

    Args:
        known: each as its words and numbers, in lower case without punctuation. Articles count: `A` is a choice.
    """

    known: frozenset[tuple[str, ...]]

    def accuracy(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """1 where the label that an answer begins with is that of its reference, else 0.

        An answer may go on behind its label; of two labels that it begins with, the longer one counts.

        Args:
            answers: what the model said.
            references: as many labels.
        """
        return [
            float(self._said(answer) == tuple(_words(other)))
            for answer, other in zip(answers, references, strict=True)
        ]

    def _said(self, answer: str) -> tuple[str, ...] | None:
        given = tuple(_words(answer))
        begun = [label for label in self.known if given[: len(label)] == label]
        return max(begun, key=len, default=None)


def labels_of(references: Sequence[str]) -> Labels | None:
    """Return the labels if these are answers of a classification, None if not.

    They are if there are two to `MOST_LABELS` different ones, of at most `MOST_WORDS` words, each of which occurs
    `EACH` times on average.
    """
    found = Counter(tuple(_words(text)) for text in references)
    few = 2 <= len(found) <= min(MOST_LABELS, len(references) // EACH)
    return Labels(frozenset(found)) if few and all(0 < len(one) <= MOST_WORDS for one in found) else None


def commonest(references: Sequence[str]) -> tuple[str, float]:
    """Return the commonest of some labels and its share: what always saying it would score."""
    text, count = Counter(" ".join(_words(text)) for text in references).most_common(1)[0]
    return text, count / len(references)


def _words(text: str) -> list[str]:
    return _WORD.findall(spaced(text.casefold()))
