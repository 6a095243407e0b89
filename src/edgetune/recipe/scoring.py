"""How the answers of a run are scored beside Rouge-L: what a recipe asks for, or what its data are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetune.core.errors import ConfigError, DataError
from edgetune.data.records import Record
from edgetune.measure.extract import Extract, extractor
from edgetune.measure.labels import Labels, commonest, labels_of
from edgetune.measure.scores import Score, exact_match, token_f1
from edgetune.recipe.sections import EvaluationSection


@dataclass(frozen=True, slots=True)
class Scoring:
    """A score of answers.

    Args:
        name: of the metric.
        extract: what counts in an answer and in the expected one alike; None where all of it does.
        score: called with answers and references, after that.
        notes: sentences about it, without a full stop.
    """

    name: str
    extract: Extract | None
    score: Score
    notes: tuple[str, ...] = ()

    def mean(self, answers: Sequence[str], references: Sequence[str]) -> float:
        """Return the mean score as a percentage; an answer in which nothing counts scores 0.

        Raises:
            ConfigError: the extractor's pattern takes too long.
        """
        if self.extract is None:
            return 100 * sum(self.score(answers, references)) / len(references)
        said, wanted = list(map(self.extract, answers)), list(map(self.extract, references))
        pairs = [
            (one, other)
            for one, other in zip(said, wanted, strict=True)
            if one is not None and other is not None
        ]
        scores = self.score([one for one, _ in pairs], [other for _, other in pairs]) if pairs else []
        return 100 * sum(scores) / len(references)


def _same(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float(answer == other) for answer, other in zip(answers, references, strict=True)]


def scoring_of(
    asked: EvaluationSection, held_out: Sequence[Record], records: Sequence[Record]
) -> Scoring | None:
    """Return the score of a run's answers, None where nothing but Rouge-L is asked for.

    `auto` is the accuracy where the responses are a few labels, else the share of exact matches where an extractor is
    named, else nothing.

    Args:
        asked: metric and extractor.
        held_out: records whose answers are scored.
        records: all that labels may come from.

    Raises:
        ConfigError: no such extractor, or a metric that these data do not have.
        DataError: the extractor finds nothing in an expected answer.
    """
    references = [record.response for record in held_out if not record.plain]
    extract = None if asked.extract is None else extractor(asked.extract)
    if not references:
        if asked.metric not in ("auto", "rouge_l") or extract is not None:
            what = "plain text has no answers to score"
            raise ConfigError(what, where="evaluation.metric", hint="leave metric and extract out")
        return None
    if extract is not None:
        _refuse_nothing(extract, held_out, str(asked.extract))
    shown = extract or str
    labels = labels_of([shown(one.response) or "" for one in records if not one.plain])
    kind = asked.metric
    if kind == "auto":
        kind = "accuracy" if labels is not None else "exact_match" if extract is not None else "rouge_l"
    return _MADE[kind](extract, labels, [shown(text) or "" for text in references])


def _refuse_nothing(extract: Extract, held_out: Sequence[Record], name: str) -> None:
    lost = [record for record in held_out if not record.plain and extract(record.response) is None]
    if lost:
        shown = repr(lost[0].response[:60])
        raise DataError(
            f"{name} finds nothing in {len(lost)} of {len(held_out)} expected answers, for example {shown}",
            where="evaluation.extract",
            hint="choose another one, or leave such records out",
        )


def _accuracy(extract: Extract | None, labels: Labels | None, references: Sequence[str]) -> Scoring:
    if labels is None:
        what = "accuracy is for a few short labels, and these responses are none"
        raise ConfigError(what, where="evaluation.metric", hint="evaluation.metric=exact_match")
    text, share = commonest(references)
    said = f"{len(labels.known)} labels: always saying {text!r} would have an accuracy of {100 * share:.1f}"
    return Scoring("accuracy", extract, labels.accuracy, (said,))


_MADE: dict[str, Callable[[Extract | None, Labels | None, Sequence[str]], Scoring | None]] = {
    "rouge_l": lambda extract, labels, references: None,
    "exact_match": lambda extract, labels, references: Scoring(
        "exact match", extract, exact_match if extract is None else _same
    ),
    "token_f1": lambda extract, labels, references: Scoring("token F1", extract, token_f1),
    "accuracy": _accuracy,
}
