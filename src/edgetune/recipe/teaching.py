"""A teacher's say on the records of a recipe, written once for devices that cannot hold the teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.heads import FEWEST, LOGITS_AT_ONCE, Apart, positions
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import collate
from edgetune.distil.stored import Said, said_of, vocabulary_digest, write_said
from edgetune.distil.teacher import ModelTeacher
from edgetune.recipe.prepare import Prepared

TOGETHER = 16
"""Records of a forward pass."""


@torch.no_grad()
def teach(prepared: Prepared, path: Path, *, top: int = 64, progress: Progress = silent) -> int:
    """Write what the teacher of a recipe says of all its records, those that are held out too.

    Args:
        prepared: model, data, lesson.
        path: of the file.
        top: tokens that are kept at a position, at least 1.
        progress: told how far it is.

    Returns:
        Number of positions.

    Raises:
        ConfigError: no teacher, or no token to be kept.
        OutputError: if the file cannot be written.
    Cost: a forward pass of the teacher over the records, and the file in memory, 6 `top` bytes a token.
    """
    lesson = prepared.lesson
    if lesson is None or not isinstance(lesson.teacher, ModelTeacher) or top < 1:
        raise ConfigError("a model is needed that says at least one token", where="distillation.teacher")
    shares = [*prepared.devices.values(), prepared.calibration_examples, prepared.held_out_examples]
    examples = [example for share in shares for example in share]
    teacher, apart, said = lesson.teacher.model, Apart(), list[Said]()
    for first in range(0, len(examples), TOGETHER):
        batch = collate(examples[first : first + TOGETHER], prepared.pad_id).to(
            prepared.backbone.model.device
        )
        where = positions(batch)
        rows = apart.rows(teacher, batch, where)
        each = max(FEWEST, LOGITS_AT_ONCE // apart.width)
        parts = [said_of(apart.logits(teacher, some), top) for some in torch.split(rows, each)]
        found = [torch.cat(one) for one in zip(*parts, strict=True)]
        counts = torch.bincount(where[0], minlength=len(batch.input_ids)).tolist()
        said += [Said(*one) for one in zip(*(torch.split(one, counts) for one in found), strict=True)]
        progress("teacher: records", min(first + TOGETHER, len(examples)), len(examples))
    write_said(
        path, examples, said, teacher=lesson.teacher.digest, vocabulary=apart.width,
        vocabulary_digest=vocabulary_digest(prepared.backbone.tokenizer.get_vocab()),
    )  # fmt: skip
    return sum(len(one.tail) for one in said)
