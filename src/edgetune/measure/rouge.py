"""Rouge-L of generated answers, as FedKSeed reports it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rouge import Rouge

from edgetune.core.errors import ConfigError
from edgetune.measure.words import spaced


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean Rouge-L F1 of answers against one reference each, as a percentage.

        F1 = 2 P R / (P + R + 1e-8),   P = |U| / |distinct words of the answer|,   R = |U| / |distinct words of the
        reference|,   U = distinct words of the longest common subsequences, united over all pairs of sentences

    Words are split at white space, sentences at full stops; case and punctuation count, nothing is stemmed. Characters
    of scripts that are written without spaces (Chinese, Japanese, Thai, ...) are words of their own (`words.spaced`);
    figures of other texts are those of the package. Other packages (`rouge_score`) tokenise and stem differently:
    compare only figures of the same package.

    Args:
        answers: what the model said; an answer without a word scores 0.
        references: as many reference answers; a reference without a word scores 0.

    Returns:
        A percentage in [0, 100]; 0.0 for no answers at all.

    Raises:
        ConfigError: the two lists differ in length.
    Cost: words of the answer x words of the reference, each.
    Source: the PyPI package `rouge` 1.0.1, metric `rouge-l`, which FedKSeed uses (arXiv 2312.06353).
    """
    if len(answers) != len(references):
        raise ConfigError(f"{len(answers)} answers cannot be scored against {len(references)} references")
    scorer = Rouge(metrics=["rouge-l"], stats=["f"])
    pairs = zip(map(spaced, answers), map(spaced, references), strict=True)
    scores = [_score(scorer, answer, reference) for answer, reference in pairs]
    return 100.0 * sum(scores) / len(scores) if scores else 0.0


def _score(scorer: Rouge, answer: str, reference: str) -> float:
    # The package raises on texts of full stops only, and scores a blank answer against a reference with "a. " above 0.
    if not answer.replace(".", "").strip() or not reference.replace(".", "").strip():
        return 0.0
    try:
        return float(scorer.get_scores(answer, reference)[0]["rouge-l"]["f"])
    except RecursionError:
        return _long_score(_sentences(answer), _sentences(reference))


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _long_score(answer: list[list[str]], reference: list[list[str]]) -> float:
    """Score by the package's formula without its recursion, which overflows on sentences of some 500 words."""
    shared: set[str] = set()
    for wanted, given in itertools.product(reference, answer):
        shared.update(_common_subsequence(wanted, given))
    precision = len(shared) / len(set(itertools.chain.from_iterable(answer)))
    recall = len(shared) / len(set(itertools.chain.from_iterable(reference)))
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common_subsequence(first: list[str], second: list[str]) -> list[str]:
    """Return the longest common subsequence the package would pick among equally long ones."""
    table = [[0] * (len(second) + 1)]
    for word in first:
        above, row = table[-1], [0]
        for column, other in enumerate(second, start=1):
            row.append(above[column - 1] + 1 if word == other else max(above[column], row[-1]))
        table.append(row)
    i, j, picked = len(first), len(second), []
    while i and j:
        if first[i - 1] == second[j - 1]:
            picked.append(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return picked
