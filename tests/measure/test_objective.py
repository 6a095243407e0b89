"""Scores against a count by hand, and objectives made of greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.data.encode import Example, collate
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.measure.evaluate import generate
from edgetune.measure.objective import Answers
from edgetune.measure.scores import exact_match, token_f1
from edgetune.tune import ProjectedTuned

words = st.lists(st.sampled_from(["fox", "dog", "cat", "bird"]), max_size=6)


@given(words, words)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(answer: list[str], reference: list[str]) -> None:
    left, shared = list(reference), 0
    for word in answer:
        if word in left:
            left.remove(word)
            shared += 1
    if not answer or not reference:
        expected = float(answer == reference)
    elif not shared:
        expected = 0.0
    else:
        precision, recall = shared / len(answer), shared / len(reference)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1([" ".join(answer)], [" ".join(reference)]) == [pytest.approx(expected)]
    assert exact_match([" ".join(answer)], [" ".join(reference)]) == [float(answer == reference)]


def test_case_punctuation_and_articles_do_not_count() -> None:
    assert exact_match(["The Eiffel-Tower!", "a then"], ["eiffeltower", "then"]) == [1.0, 1.0]
    assert token_f1(["in the  year 1990."], ["1990"]) == [pytest.approx(0.5)]
    assert token_f1([], []) == []


def batch() -> Batch:
    rows = [((72, 101, 108, 108, 111, 33, 63), 4), ((70, 71, 99), 1), ((80, 81, 82, 97, 98), 3)]
    return collate([Example(ids, start) for ids, start in rows], 256)


def test_the_objective_is_minus_the_mean_score_of_greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    seen: list[Any] = []

    def score(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        seen.append((list(answers), list(references)))
        return [1.0, 0.25, 0.0]

    objective = Answers(score, max_new_tokens=4).bind(tokenizer)
    assert float(objective(model, batch())) == pytest.approx(-1.25 / 3)
    prompts = [[72, 101, 108, 108], [70], [80, 81, 82]]
    answers = generate(model, tokenizer, prompts, max_new_tokens=4, batch_size=1)
    references = [str(tokenizer.decode(ids)) for ids in ([111, 33, 63], [71, 99], [97, 98])]
    assert seen == [(answers, [one.strip() for one in references])]


def test_a_score_without_a_number_an_answer_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match="1 numbers for 3 answers"):
        Answers(lambda answers, references: [1.0], 2).bind(tokenizer)(model, batch())
    with pytest.raises(ConfigError, match="at least one token"):
        Answers(token_f1, 0)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_its_slope_is_the_difference_of_the_perturbed_models_scores(
    kernel: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)

    def low_letters(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        return [sum(ord(letter) % 7 for letter in answer) / 10 for answer in answers]

    space, objective = BoundSpace(Rademacher(), pool_key(1)), Answers(low_letters, 4).bind(tokenizer)
    model.requires_grad_(False)
    tuned = ProjectedTuned(model, space)
    estimate = TwoPoint(0.05, 3)(tuned, objective, batch(), 1, 2, 3)
    base = {name: weight.clone() for name, weight in model.named_parameters()}
    slopes = []
    for key in (1, 2, 3):
        ends = []
        for scale in (0.05, -0.05):
            for name, weight in model.named_parameters():
                space.axpy(weight.data, base[name], scale, name, key)
            ends.append(float(objective(model, batch())))
        slopes.append((ends[0] - ends[1]) / 0.1)
    assert estimate.update.coefficients.tolist() == pytest.approx([slope / 3 for slope in slopes], rel=1e-5)
    assert any(slopes)
    # the scratch that generation used serves a plain forward pass as well
    for name, weight in model.named_parameters():
        weight.data.copy_(base[name])
    TwoPoint(0.05)(
        tuned,
        lambda one, rows: one(rows.input_ids, attention_mask=rows.attention_mask).logits.mean(),
        batch(),
        1,
    )
