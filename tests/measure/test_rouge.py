from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from edgetune.core.errors import ConfigError
from edgetune.measure import rouge
from edgetune.measure.rouge import rouge_l

words = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=7)
texts = st.text("ab .\n", max_size=24)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """By trying every subsequence of the first."""
    for length in range(len(first), 0, -1):
        for chosen in itertools.combinations(first, length):
            rest = iter(second)
            if all(word in rest for word in chosen):
                return length
    return 0


@settings(deadline=None)
@given(words.map(dict.fromkeys).map(list), words.map(dict.fromkeys).map(list))
def test_agrees_with_brute_force_on_one_sentence_of_distinct_words(
    first: list[str], second: list[str]
) -> None:
    common = longest_common_subsequence(first, second)
    precision, recall = common / len(first), common / len(second)
    expected = 100 * 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l([" ".join(first)], [" ".join(second)]) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(texts, texts)
def test_scores_of_texts_with_words_are_those_of_the_package(answer: str, reference: str) -> None:
    if answer.replace(".", "").strip() and reference.replace(".", "").strip():
        expected = Rouge().get_scores(answer, reference)[0]["rouge-l"]["f"]
        assert rouge_l([answer], [reference]) == pytest.approx(100 * expected, abs=1e-12)
        long = rouge._long_score(rouge._sentences(answer), rouge._sentences(reference))
        assert long == pytest.approx(expected, abs=1e-15)
    else:
        assert rouge_l([answer], [reference]) == 0.0


def test_repeated_words_count_once() -> None:
    assert rouge_l(["the the the cat"], ["the cat"]) == pytest.approx(100, abs=1e-5)


def test_the_mean_is_over_answers() -> None:
    assert rouge_l(["a b", "", "x"], ["a b", "a b", "a b"]) == pytest.approx(100 / 3, abs=1e-5)
    assert rouge_l([], []) == 0.0


@pytest.mark.parametrize("blank", ["", " ", "\n\t", ".", "...", " . . "])
def test_blank_texts_score_nothing(blank: str) -> None:
    assert rouge_l([blank], ["a. b. "]) == 0.0
    assert rouge_l(["a. b. "], [blank]) == 0.0


def test_long_sentences_without_a_full_stop_are_scored() -> None:
    text = " ".join(f"w{index}" for index in range(600))
    assert rouge_l([text], [text]) == pytest.approx(100, abs=1e-5)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 answers cannot be scored against 2"):
        rouge_l(["a"], ["a", "b"])
