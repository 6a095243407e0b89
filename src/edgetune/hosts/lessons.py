"""A run's teacher across hosts: the server names it by digest, every device has its own, and none travels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune import __version__
from edgetune.core.errors import ConfigError, DigestError, LimitError
from edgetune.core.reasons import shortened
from edgetune.distil.lesson import Lesson
from edgetune.federation.pipes import Message
from edgetune.hosts.limits import Limits
from edgetune.methods.cards import is_file
from edgetune.models.backbone import Backbone, rows_of
from edgetune.models.source import find_model, is_gguf
from edgetune.models.stored import stored_size
from edgetune.recipe.encoder import longest_of
from edgetune.recipe.lesson import COMPARED, check_distillation, check_taught, lesson_of
from edgetune.recipe.prepare import Prepared, recipe_method
from edgetune.recipe.recipe import Recipe

WHERE = "--teacher"
WIDEST = 4
"""Bytes of a number of float32, the widest that models are stored in."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a device must find its own teacher to be.

    Args:
        shared: `Lesson.shared`.
        teacher: digest of the model that teaches.
        top: tokens that a file of what it said names at a position; None where the model itself is asked for.
        ends: tokens that end a response.
    """

    shared: str
    teacher: str
    top: int | None
    ends: tuple[int, ...]

    def told(self) -> dict[str, Any]:
        """Return them as an opening says them."""
        return {"shared": self.shared, "teacher": self.teacher, "top": self.top, "ends": list(self.ends)}


def served_lesson(prepared: Prepared) -> Lesson | None:
    """Return the lesson of a server's run; its own teacher serves to name it, and for what is found before the run.

    Raises:
        EdgetuneError: as `recipe.lesson.lesson_of`, and `check_taught` for the server's own sample.
    """
    recipe, student = prepared.recipe, prepared.backbone
    texts = [record.response for record in prepared.records[:COMPARED]]
    longest = longest_of(recipe, prepared.method, student)
    lesson = lesson_of(recipe, student, prepared.ends, texts, longest=longest)
    check_taught(lesson, prepared.calibration_examples)
    return lesson


def refuse_files_of_code(recipe: Recipe) -> None:
    """Refuse a reward that would have a server's code executed on a device.

    Raises:
        ConfigError: naming the file.
    """
    reward = recipe.distillation.reward
    if is_file(reward):
        raise ConfigError(
            f"the reward is a file ({Path(str(reward)).name}), and no server has its code executed on a device",
            where="distillation.reward",
            hint="exact_match, token_f1 or rouge_l",
        )


def terms_of(lesson: Lesson) -> Terms:
    """Return what devices are told of a lesson beside the recipe's [distillation]."""
    return Terms(lesson.shared, lesson.teacher.named, lesson.teacher.top, tuple(sorted(lesson.ends)))


def terms_told(opening: Message) -> Terms:
    """Read the terms of an opening.

    Raises:
        DigestError: if they are none.
    """
    said = opening.head.get("lesson")
    said = said if isinstance(said, dict) else {}
    shared, teacher, top, ends = (said.get(name) for name in ("shared", "teacher", "top", "ends"))
    sound = isinstance(shared, str) and isinstance(teacher, str) and (top is None or type(top) is int)
    if not sound or not isinstance(ends, list) or not all(type(one) is int for one in ends):
        raise DigestError(
            "the server does not say which teacher its run has", where="recipe",
            hint=f"install the same edgetune on server and devices (here {__version__})",
        )  # fmt: skip
    return Terms(str(shared), str(teacher), top, tuple(ends))


def with_own_teacher(told: Recipe, opening: Message, own: str | None, data: Path) -> Recipe:
    """Return the recipe of a run with this device's own teacher in the place of the server's.

    Args:
        told: by the server.
        opening: that told it.
        own: a model, or a file of `edgetune teach`; consent to be taught, which no server can give in its stead.
        data: this device's records.

    Raises:
        ConfigError: there is a teacher and none is given, or one of the other kind; as `check_distillation`; a reward
            is a file.
        DigestError: the server does not name its teacher.
    """
    section = told.distillation
    if not section.wanted:
        return told
    check_distillation(told, recipe_method(told))
    refuse_files_of_code(told)
    terms = terms_told(opening)
    stored = section.teacher is None
    name = shortened(Path(str(section.teacher)).name, 40)
    hint = f"--teacher PATH, a copy of the server's {name}: this device cannot take part without it"
    if stored:
        hint = f"{_command(told, terms, data)}, then --teacher said.safetensors"
    if own is None:
        raise ConfigError(
            f"the run learns from a teacher ({terms.teacher[:12]}), and this device was given none",
            where=WHERE,
            hint=hint,
        )
    if _is_said(own) != stored:
        has, wants = "what a teacher said", "the teacher itself"
        raise ConfigError(
            f"this is {wants if stored else has}, and the run learns from {has if stored else wants}",
            where=f"{WHERE} {own}",
            hint=hint,
        )
    found = {"teacher_logits" if stored else "teacher": own}
    return told.model_copy(update={"distillation": section.model_copy(update=found)})


def own_lesson(opening: Message, recipe: Recipe, student: Backbone, limits: Limits) -> Lesson | None:
    """Open this device's own teacher, and return the run's lesson if it is the server's.

    Args:
        opening: from the server.
        recipe: as `with_own_teacher` returns it.
        student: the base, which is the server's.
        limits: of this device.

    Raises:
        DigestError: it is another teacher, or another lesson.
        LimitError: it does not fit into what this device allows.
        EdgetuneError: as `recipe.lesson.lesson_of`: another vocabulary, a short context, no model or file.
    Cost: one copy of the teacher.
    """
    section = recipe.distillation
    if not section.wanted:
        return None
    terms = terms_told(opening)
    if not all(0 <= one < rows_of(student) for one in terms.ends):
        raise DigestError("the server names ends of an answer that the base model lacks", where="recipe")
    if section.teacher is not None:
        _refuse_too_large(section.teacher, student.dtype.itemsize, limits)
    longest = longest_of(recipe, recipe_method(recipe), student)
    lesson = lesson_of(recipe, student, terms.ends, (), longest=longest)
    check_lesson(opening, recipe, lesson)
    if why := limits.too_much(0, "the teacher"):
        raise LimitError(why, where="--max-memory")
    return lesson


def check_lesson(opening: Message, recipe: Recipe, lesson: Lesson | None) -> None:
    """Refuse a teacher that is not the server's, or a lesson that is not.

    Raises:
        DigestError: saying what differs.
    """
    if lesson is None:
        return
    terms, own = terms_told(opening), lesson.teacher
    source = recipe.distillation.teacher or recipe.distillation.teacher_logits
    where = f"{WHERE} {source}"
    if own.named != terms.teacher:
        raise DigestError(
            f"the teacher is another than the server's ({own.named[:12]} here, {shortened(terms.teacher)[:12]} there)",
            where=where,
            hint="copy the server's teacher, or make the file with it",
        )
    if own.top != terms.top:
        raise DigestError(
            f"the file names {own.top} tokens at a position, the server's {terms.top}", where=where,
            hint=f"edgetune teach --top {terms.top}",
        )  # fmt: skip
    if lesson.shared != terms.shared:
        raise DigestError(
            "the lesson is another than the server's", where=where,
            hint=f"install the same edgetune on server and devices (here {__version__})",
        )  # fmt: skip


def taught_by(recipe: Recipe, lesson: Lesson) -> str:
    """Return in one line from whom a device learns, and how."""
    section, own = recipe.distillation, lesson.teacher
    source = Path(str(section.teacher or section.teacher_logits)).name
    sampled = f"lambda {section.share:g}" if own.top is None else f"its {own.top} likeliest tokens"
    return f"learns from {source} ({own.named[:12]}), beta {section.beta:g}, {sampled}"


def _refuse_too_large(source: str, width: int, limits: Limits) -> None:
    """Refuse a teacher before it is loaded, by a lower bound of what it takes.

    No stored number is wider than `WIDEST`, so that weights loaded as narrower ones take no less than this share.
    """
    least = stored_size(find_model(source)) * min(width, WIDEST) // WIDEST
    if why := limits.too_much(least, "the teacher"):
        raise LimitError(why, where="--max-memory")


def _is_said(own: str) -> bool:
    """Tell whether a teacher's name is that of a file of what one said; whether it is whole is seen when it is read."""
    try:
        path = Path(own).expanduser()
        return path.is_file() and not is_gguf(path)
    except (OSError, ValueError, RuntimeError):
        return False


def _command(told: Recipe, terms: Terms, data: Path) -> str:
    """Return what writes this device's file: the settings that decide which tokens a record has are the server's."""
    settings = {
        "data.prompt": told.data.prompt, "data.max_tokens": told.data.max_tokens,
        "evaluation.max_new_tokens": told.evaluation.max_new_tokens,
    }  # fmt: skip
    sets = " ".join(f"--set {name}={value}" for name, value in settings.items())
    return (
        f"edgetune teach TEACHER --model {told.model.source} --data {data} --top {terms.top} {sets} "
        "--out said.safetensors"
    )
