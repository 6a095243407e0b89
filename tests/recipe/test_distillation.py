"""What [distillation] refuses before a run: teachers that would teach nonsense, and settings that cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError, DataError, ModelError
from edgetune.models.backbone import load_backbone
from edgetune.recipe.distillation_section import DistillationSection
from edgetune.recipe.lesson import check_distillation, check_vocabulary, lesson_of
from edgetune.recipe.open_settings import recipe_method
from edgetune.recipe.recipe import Recipe, load_recipe


def _recipe(*settings: str, method: str = "lora") -> Recipe:
    return load_recipe(None, settings, method__name=method)


@pytest.mark.parametrize(
    ("settings", "method", "said"),
    [
        (["distillation.beta=0.3"], "lora", "nobody is named"),
        (["distillation.teacher=embedded", "distillation.teacher_logits=x"], "lora", "two teachers"),
        (["distillation.teacher_logits=x", "distillation.on_policy=0.5"], "lora", "said beforehand"),
        (["distillation.teacher=embedded", "method.objective=token_f1"], "mezo", "minimises"),
        (["distillation.teacher=embedded"], "dpzero", "which is to be hidden"),
        (
            ["distillation.teacher=embedded", "distillation.reward=rouge_l", "distillation.on_policy=0"],
            "lora",
            "rewarded",
        ),
        (["distillation.teacher=embedded", "distillation.reward=rouge_l"], "fedkseed", "there is one"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], method: str, said: str) -> None:
    recipe = _recipe(*settings, method=method)
    with pytest.raises(ConfigError, match=said):
        check_distillation(recipe, recipe_method(recipe))


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ([], "lora"),
        (["distillation.teacher=embedded"], "fedkseed"),
        (["distillation.teacher_logits=x"], "fedavg"),
        (["distillation.teacher=embedded", "distillation.reward=rouge_l"], "lora"),
        (["distillation.teacher=embedded", "distillation.on_policy=0"], "dpzero"),
    ],
)
def test_settings_that_do_are_taken(settings: list[str], method: str) -> None:
    recipe = _recipe(*settings, method=method)
    check_distillation(recipe, recipe_method(recipe))


def test_half_of_the_steps_are_the_students_own_unless_said_otherwise_and_none_of_a_files() -> None:
    assert DistillationSection(teacher="x").share == 0.5
    assert DistillationSection(teacher_logits="x").share == 0.0
    assert DistillationSection(teacher="x", on_policy=1).share == 1.0


def test_a_run_without_a_teacher_is_known_by_its_old_name_and_every_setting_changes_it() -> None:
    names = {_recipe().tuning_fingerprint}
    for setting in (
        "teacher=x",
        "beta=0.1",
        "normalise=true",
        "on_policy=0.1",
        "temperature=0.5",
        "regenerate_every=2",
    ):
        names.add(_recipe("distillation.teacher=y", f"distillation.{setting}").tuning_fingerprint)
    assert len(names) == 7
    assert '"distillation"' not in _recipe().model_dump_json(exclude={"distillation"})


def test_another_vocabulary_is_refused_with_the_token_that_differs(tiny_tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer.__class__.from_str(
        tiny_tokenizer.backend_tokenizer.to_str().replace('"th":', '"\\u0141":').replace('["t","h"]', "").replace(
            '[\n        "t",\n        "h"\n      ]', "")))  # fmt: skip
    with pytest.raises(ConfigError, match="different vocabularies: 2 differences, token 97"):
        check_vocabulary(tiny_tokenizer, other, [], "other")
    check_vocabulary(tiny_tokenizer, tiny_tokenizer, ["the end"], "itself")


def test_equal_words_that_are_put_together_otherwise_are_refused(tiny_tokenizer: Any) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    unmerged = Tokenizer(models.BPE(tiny_tokenizer.get_vocab(), []))
    unmerged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    unmerged.decoder = decoders.ByteLevel()
    other = PreTrainedTokenizerFast(tokenizer_object=unmerged)
    check_vocabulary(tiny_tokenizer, other, ["a fox"], "other")
    with pytest.raises(ConfigError, match="read a text as different tokens: 'the fox'"):
        check_vocabulary(tiny_tokenizer, other, ["a fox", "the fox"], "other")


def test_a_teacher_that_is_not_there_or_too_short_is_refused_by_the_settings_name(save_tiny: Any) -> None:
    student = load_backbone(save_tiny())
    with pytest.raises(ModelError, match=r"distillation\.teacher"):
        lesson_of(_recipe("distillation.teacher=./nowhere"), student, [0], [])
    own = _recipe(f"distillation.teacher={student.folder}")
    with pytest.raises(ConfigError, match="holds 128 tokens, a record with a response 129"):
        lesson_of(own, student, [0], [], longest=129)
    lesson = lesson_of(own, student, [0], [], longest=128)
    assert lesson is not None
    assert (lesson.vocabulary, lesson.ends) == (100, {0})


def test_a_file_that_is_not_there_is_refused(save_tiny: Any, tmp_path: Path) -> None:
    recipe = _recipe(f"distillation.teacher_logits={tmp_path / 'none'}")
    with pytest.raises(DataError, match="edgetune teach"):
        lesson_of(recipe, load_backbone(save_tiny()), [0], [])


def test_a_recipe_file_names_no_code_of_a_reward(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[distillation]\nteacher = "x"\nreward = "mine.py"\n')
    with pytest.raises(ConfigError, match="would be executed"):
        load_recipe(path)
    assert load_recipe(None, ["distillation.reward=mine.py"]).distillation.reward == "mine.py"
