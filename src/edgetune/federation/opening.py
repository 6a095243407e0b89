"""What a worker process is told at its start, and of each device: enough to answer with the bits of the run itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from edgetune.core.errors import DigestError
from edgetune.data.encode import Example
from edgetune.federation.pipes import Message
from edgetune.federation.start import Start
from edgetune.federation.worker import Worker
from edgetune.models.backbone import load_backbone
from edgetune.recipe.lesson import lesson_of
from edgetune.recipe.prepare import Prepared, recipe_method
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.residency import RESIDENCIES


def opening_of(prepared: Prepared, scratch: Path | None) -> Message:
    """Return what a worker process needs to open the same model: no data, which follows device by device."""
    backbone = prepared.backbone
    head = {
        "folder": str(backbone.folder.resolve()),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "prompt_digest": backbone.prompt_digest,
        "pad_id": prepared.pad_id,
        "threads": torch.get_num_threads(),
        "scratch": None if scratch is None else str(scratch.resolve()),
        "recipe": prepared.recipe.model_dump(),
        "method": prepared.method.digest,
        "ends": list(prepared.ends),
        "lesson": prepared.lesson.digest if prepared.lesson else None,
    }
    return Message("open", head)


def worker_of(opening: Message) -> Worker:
    """Open the model in a worker process, with the threads of the run.

    Raises:
        DigestError: if the method here is not the run's: its file was changed.
        EdgetuneError: as loading the model does.
    """
    head = opening.head
    torch.set_num_threads(int(head["threads"]))
    recipe = Recipe.model_validate(head["recipe"])
    method = recipe_method(recipe)
    if method.digest != head["method"]:
        raise DigestError(
            "the method is another than the run began with", where=recipe.method.name, hint="run it again"
        )
    dtype, residency = getattr(torch, head["dtype"]), RESIDENCIES[recipe.model.residency]
    backbone = load_backbone(Path(head["folder"]), dtype=dtype, matrices=not residency.streamed)
    lesson = lesson_of(recipe, backbone, head["ends"], ())
    if (lesson.digest if lesson else None) != head["lesson"]:
        raise DigestError("the teacher is another than the run began with", where=recipe.distillation.teacher)
    return Worker(
        replace(backbone, prompt_digest=head["prompt_digest"]),  # its devices get tokens, not text
        method,
        recipe.seed,
        residency,
        scratch=None if head["scratch"] is None else Path(head["scratch"]),
        start=Start(awaited=True),
        lesson=lesson,
    )


def share_of(shares: Mapping[int, Sequence[Example]], device: int) -> Message:
    """Return a device's examples as a message."""
    return Message("share", {"device": device}, json.dumps([asdict(one) for one in shares[device]]).encode())


def examples_of(share: Message) -> list[Example]:
    """Return the examples of a message."""
    found: list[dict[str, Any]] = json.loads(share.body)
    return [Example(**{key: _frozen(value) for key, value in one.items()}) for one in found]


def _frozen(value: Any) -> Any:
    """Undo what JSON does to tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
