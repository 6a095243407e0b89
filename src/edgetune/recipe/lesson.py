"""From the recipe's [distillation] to a lesson, with everything refused that would teach nonsense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import ConfigError, DataError, ModelError
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.core.part import by_name
from edgetune.data.encode import Example, padding_id
from edgetune.distil.lesson import Lesson
from edgetune.distil.on_policy import OnPolicy
from edgetune.distil.reward import REWARDS, Reward
from edgetune.distil.stored import HINT, StoredTeacher, vocabulary_digest
from edgetune.distil.teacher import ModelTeacher, Teacher
from edgetune.methods.cards import is_file
from edgetune.methods.method import TuningMethod
from edgetune.methods.own import module_of
from edgetune.models.backbone import Backbone, load_backbone, rows_of
from edgetune.recipe.distillation_section import DistillationSection
from edgetune.recipe.recipe import Recipe

WHERE = "distillation.teacher"
COMPARED = 64
"""Texts that both tokenizers are given."""


def check_distillation(recipe: Recipe, method: TuningMethod) -> None:
    """Refuse settings that cannot be meant together, before anything is loaded.

    Raises:
        ConfigError: saying what to change.
    """
    section = recipe.distillation
    if not section.wanted:
        if section != DistillationSection():
            raise ConfigError("nobody is named to learn from", where=WHERE, hint="--teacher MODEL")
        return
    if section.teacher is not None and section.teacher_logits is not None:
        raise ConfigError("two teachers are named", where=WHERE, hint="leave distillation.teacher_logits out")
    if section.teacher is None and section.share:
        raise ConfigError(
            "what a teacher said beforehand is not about responses that the student will sample",
            where="distillation.on_policy",
            hint="set it to 0, or name a model as distillation.teacher",
        )
    if method.objective is not None:
        raise ConfigError(
            f"{method.name} minimises {method.objective.title}, and a distillation the distance from its teacher",
            where="method.objective",
            hint="--set method.objective=loss",
        )
    if section.reward is not None and not section.share:
        raise ConfigError(
            "only responses that the student samples are rewarded",
            where="distillation.reward",
            hint="--set distillation.on_policy=1",
        )
    if section.reward is not None and method.batch_size * section.regenerate_every < 2:
        raise ConfigError(
            "a reward is compared with those of the responses that are sampled together, and there is one",
            where="distillation.reward",
            hint="--set method.batch_size=4, or distillation.regenerate_every",
        )
    if method.private and section.share:
        raise ConfigError(
            "which number decides a sampled token depends on who else is in a batch, which is to be hidden",
            where="distillation.on_policy",
            hint="--set distillation.on_policy=0",
        )


def lesson_of(
    recipe: Recipe, student: Backbone, ends: Iterable[int], texts: Sequence[str], *, longest: int = 0
) -> Lesson | None:
    """Return the lesson of a recipe; None if it has no teacher.

    Args:
        recipe: of the run.
        student: the base, before anything is placed on it.
        ends: tokens that end a response.
        texts: some of the data's, which both tokenizers must read alike.
        longest: tokens of a record with a sampled response.

    Raises:
        ConfigError: as `check_vocabulary`; the teacher's context is too short.
        ModelError: the teacher cannot be loaded.
        DataError: as `distil.stored.StoredTeacher`.
    Cost: one copy of the teacher.
    """
    section = recipe.distillation
    if not section.wanted:
        return None
    if section.teacher is None:
        return _stored(recipe, student, ends)
    try:
        teacher = load_backbone(section.teacher, dtype=student.dtype, device=student.model.device)
    except ModelError as error:
        raise ModelError(error.what, where=f"{WHERE}: {error.where}", hint=error.hint) from error
    check_vocabulary(student.tokenizer, teacher.tokenizer, texts, section.teacher)
    holds = int(getattr(teacher.model.config, "max_position_embeddings", 0) or longest)
    if holds < longest:
        raise ConfigError(
            f"the teacher holds {holds} tokens, a record with a response {longest}",
            where=WHERE,
            hint="lower data.max_tokens or distillation.max_new_tokens",
        )
    digest = sha256(f"{teacher.digest} {teacher.prompt_digest}".encode()).hexdigest()
    shared = min(rows_of(student), rows_of(teacher))
    return _lesson(section, student, ends, ModelTeacher(teacher.model, digest), shared)


def _stored(recipe: Recipe, student: Backbone, ends: Iterable[int]) -> Lesson:
    path = Path(str(recipe.distillation.teacher_logits)).expanduser()
    teacher = StoredTeacher(path, vocabulary_digest(student.tokenizer.get_vocab()))
    if teacher.largest >= rows_of(student):
        raise DataError(f"the teacher names token {teacher.largest}, which the student lacks", where=path)
    return _lesson(recipe.distillation, student, ends, teacher, rows_of(student))


def _lesson(
    section: DistillationSection, student: Backbone, ends: Iterable[int], teacher: Teacher, shared: int
) -> Lesson:
    return Lesson(
        teacher,
        JensenShannon(section.beta, section.normalise),
        OnPolicy(section.share, section.temperature, section.max_new_tokens, section.regenerate_every),
        shared,
        frozenset(ends),
        padding_id(student.tokenizer),
        None
        if section.reward is None
        else reward_of(section.reward, section.reward_weight, student.tokenizer),
    )


def reward_of(name: str, weight: float, tokenizer: PreTrainedTokenizerBase) -> Reward:
    """Return a reward by its name, or that of a Python file, which is executed.

    Args:
        name: of `REWARDS`, or a .py file that defines `reward(answers, references)`, one number an answer.
        weight: above 0, at most 1.
        tokenizer: makes texts of tokens.

    Raises:
        ConfigError: if there is none of that name, or the file defines none.
    """

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    if not is_file(name):
        return Reward(by_name(name, REWARDS, "reward"), weight, text, name)
    module, digest = module_of(Path(name))
    score = getattr(module, "reward", None)
    if not callable(score):
        raise ConfigError("the file defines no reward(answers, references)", where=name)
    return Reward(score, weight, text, digest)


def check_taught(lesson: Lesson | None, examples: Sequence[Example]) -> None:
    """Refuse a file of a teacher's logits that knows nothing of some records.

    Raises:
        DataError: saying of how many.
    """
    if lesson is None or not isinstance(lesson.teacher, StoredTeacher):
        return
    missing = lesson.teacher.missing(examples)
    if missing:
        raise DataError(
            f"the teacher said nothing of {missing:,} of {len(examples):,} records",
            where=lesson.teacher.path,
            hint=HINT,
        )


def check_vocabulary(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, texts: Sequence[str], source: str
) -> None:
    """Refuse a teacher whose token numbers mean something else; a padded head is no difference.

    Args:
        student, teacher: the tokenizers.
        texts: of which at most COMPARED are read by both.
        source: what the teacher was asked for by.

    Raises:
        ConfigError: naming the first difference.
    """
    hint = "a teacher of the same family; or tune on its answers: edgetune teach TEACHER --answers"
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    apart = sorted({*ours.items()} ^ {*theirs.items()}, key=lambda one: (one[1], one[0]))
    if apart:
        word, number = apart[0]
        who = "the student" if ours.get(word) == number else "the teacher"
        raise ConfigError(
            f"student and teacher have different vocabularies: {len(apart):,} differences, token {number} is "
            f"{word[:40]!r} for {who} alone",
            where=f"{WHERE}: {source}",
            hint=hint,
        )
    for text in texts[:COMPARED]:
        if (
            student(text, add_special_tokens=False).input_ids
            != teacher(text, add_special_tokens=False).input_ids
        ):
            raise ConfigError(
                f"student and teacher read a text as different tokens: {text[:60]!r}",
                where=f"{WHERE}: {source}",
                hint=hint,
            )
