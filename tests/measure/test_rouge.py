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
from edgetune.measure.scores import exact_match, token_f1
from edgetune.measure.words import MIXED, SPACED, spaced, words_of

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


NEARLY_RIGHT = {
    "Chinese": ("中国的首都是北京", "中国首都是北京"),
    "Japanese": ("日本の首都は東京です。", "日本の首都は東京だ。"),
    "Thai": ("เมืองหลวงของไทยคือกรุงเทพ", "เมืองหลวงของประเทศไทยคือกรุงเทพ"),
    "Khmer": ("រាជធានីភ្នំពេញ", "រាជធានីគឺភ្នំពេញ"),
    "mixed": ("GPT-4は2023年に公開", "GPT-4は2023年の公開"),
}


@pytest.mark.parametrize("language", NEARLY_RIGHT)
def test_a_nearly_right_answer_without_spaces_scores_highly(language: str) -> None:
    answer, reference = NEARLY_RIGHT[language]
    assert 75 < rouge_l([answer], [reference]) < 100
    assert 75 < 100 * token_f1([answer], [reference])[0] < 100
    assert rouge_l([reference], [reference]) == pytest.approx(100, abs=1e-5)
    assert rouge_l(["Αθήνα"], [reference]) == 0.0


def test_a_score_without_spaces_is_that_of_the_text_with_a_space_after_every_character() -> None:
    for answer, reference in (NEARLY_RIGHT["Chinese"], NEARLY_RIGHT["Japanese"]):
        expected = Rouge().get_scores(" ".join(answer), " ".join(reference))[0]["rouge-l"]["f"]
        assert rouge_l([answer], [reference]) == pytest.approx(100 * expected, abs=1e-12)


def test_characters_letters_and_marks() -> None:
    assert spaced("GPT-4は2023年、東京で。").split() == [
        "GPT-4",
        "は",
        "2023",
        "年",
        "、",
        "東",
        "京",
        "で",
        "。",
    ]
    assert spaced("ที่นี่").split() == ["ที่", "นี่"]
    assert spaced("か\u3099ラーメン").split() == ["か\u3099", "ラ", "ー", "メ", "ン"]
    assert words_of(["plain", ""]) == SPACED == words_of([])
    assert words_of(["plain", "中"]) == MIXED


SCRIPTS = "Latin é, Ελληνικά, Кириллица, עברית, العربية, 한국어 문장, हिन्दी वाक्य, ქართული, 3.14 · € 😀 ’“”…"


def test_scripts_with_spaces_are_left_as_they_are() -> None:
    assert spaced(SCRIPTS) == SCRIPTS
    assert words_of([SCRIPTS]) == SPACED


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=0x0DFF)))
def test_any_text_below_thai_is_left_as_it_is(text: str) -> None:
    assert spaced(text) == text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_only_spaces_are_added(text: str) -> None:
    assert spaced(text).replace(" ", "") == text.replace(" ", "")


def test_punctuation_does_not_count_in_exact_match() -> None:
    assert (
        exact_match(["東京。", "「東京」", "東京、日本", "東京!"], ["東京", "東京", "東京日本", "東京"])
        == [1.0] * 4
    )
    assert exact_match(["東京", "ー"], ["京東", ""]) == [0.0, 0.0]
    assert token_f1(["東京タワー"], ["東京"]) == [pytest.approx(4 / 7)]
