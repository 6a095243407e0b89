"""What a device is told of a run before its first round, and what it checks before it says that it can take part."""

from __future__ import annotations

from pathlib import Path

from edgetune import __version__
from edgetune.core.errors import ConfigError, DigestError
from edgetune.core.reasons import shortened
from edgetune.federation.pipes import Message
from edgetune.federation.residency import digest_of
from edgetune.hosts.kinds import OPEN
from edgetune.hosts.lessons import terms_of, with_own_teacher
from edgetune.methods.cards import is_file
from edgetune.models.backbone import Backbone
from edgetune.models.source import here
from edgetune.recipe.open_settings import written_out
from edgetune.recipe.prepare import Prepared, recipe_method
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.residency import RESIDENCIES


def opening_of(prepared: Prepared) -> Message:
    """Return what a device is told: settings, and the names of what it must have itself. Nothing in it is executed."""
    recipe, backbone = prepared.recipe, prepared.backbone
    head = {
        "version": __version__,
        "recipe": written_out(recipe).model_dump(mode="json"),
        "method": prepared.method.digest,
        "base": digest_of(backbone, RESIDENCIES[recipe.model.residency].grid),
        "prompt": backbone.prompt_digest,
    }
    if prepared.lesson is not None:
        head["lesson"] = terms_of(prepared.lesson).told()
    return Message(OPEN, head)


def recipe_told(
    opening: Message, *, model: str | None, method: Path | None, teacher: str | None, data: Path
) -> Recipe:
    """Return the recipe of a run as it is on this device.

    Args:
        opening: from the server.
        model: where the base is here; where the recipe says if not given.
        method: a file of a method that does not come with edgetune.
        teacher: whom this device lets itself be taught by.
        data: its records.

    Raises:
        ConfigError: if the recipe is none that this version knows, or its method is a file that is not given; as
            `lessons.with_own_teacher`.
        DigestError: if the method here is another one.
        ModelError: if the base is not on this device: no server has a model downloaded here.
    """
    try:
        told = Recipe.model_validate(opening.head["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the server's settings are none of this version's ({__version__} here, "
            f"{shortened(str(opening.head.get('version')), 20)} there)",
            where="recipe",
            hint="install the same edgetune on server and devices",
        ) from error
    name = told.method.name
    if is_file(name) and method is None:
        raise ConfigError(
            f"the method is a file ({Path(name).name}), and no server has its code executed here",
            where="method", hint="give a file of your own that is the same: --method FILE",
        )  # fmt: skip
    section = told.method if method is None else told.method.model_copy(update={"name": str(method)})
    source = told.model.model_copy(update={"source": model or here(told.model.source)})
    recipe = told.model_copy(update={"method": section, "model": source})
    if recipe_method(recipe).digest != opening.head.get("method"):
        raise DigestError(
            "the method is another version than the server's", where=f"method {Path(name).name}",
            hint=f"install the same edgetune on server and devices (here {__version__})",
        )  # fmt: skip
    return with_own_teacher(recipe, opening, teacher, data)


def check_base(opening: Message, backbone: Backbone, recipe: Recipe) -> None:
    """Refuse a base model that is not the server's, or that makes other tokens of a text.

    Raises:
        DigestError: saying which of both.
    """
    there = opening.head
    own, told = digest_of(backbone, RESIDENCIES[recipe.model.residency].grid), there.get("base")
    hint = "copy the server's model folder, and name it with --model"
    if own != told:
        raise DigestError(
            f"the base model is another than the server's ({own[:12]} here, {shortened(str(told)[:12])} there)",
            where=recipe.model.source,
            hint=hint,
        )
    if backbone.prompt_digest != there.get("prompt"):
        raise DigestError(
            "the tokenizer, its chat template or its ends of an answer are others than the server's",
            where=recipe.model.source,
            hint=hint,
        )
