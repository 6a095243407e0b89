"""A teacher's own answers as records: sequence-level distillation, for students of any vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgetune.core.errors import DataError, ModelError
from edgetune.core.files import write_text_atomic
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import Encoded
from edgetune.data.records import FIELDS, Record
from edgetune.measure.evaluate import decode
from edgetune.recipe.encoder import Encoder, longest_of
from edgetune.recipe.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of asking.

    Args:
        kept: records that were written.
        cut: answers that did not end in time, which would teach not to end.
        empty: questions to which nothing was said.
        held_out: records that were not asked, and copies of them.
    """

    kept: int
    cut: int
    empty: int
    held_out: int


def answer_records(prepared: Prepared, path: Path, progress: Progress = silent) -> Answered:
    """Write the teacher's answers to what devices would train on, as records that any student can be tuned on.

        y = argmax_v P(v | x, y_<t) token by token;   the student's loss on them: - log Q(y | x)

    Args:
        prepared: the teacher as its base, without devices; neither what is held out nor the server's sample is asked.
        path: a .jsonl file; records of conversations are written as `messages`, others as instruction and response.
        progress: told how far it is.

    Raises:
        DataError: no record asks anything, or no answer ends within `evaluation.max_new_tokens`.
        ModelError: the teacher has no key-value cache.
        OutputError: if the file cannot be written.
    Cost: `evaluation.max_new_tokens` forward passes of one token a batch of records.
    Source: Kim and Rush 2016, arXiv:1606.07947, section 3.2, with a beam of one.
    """
    apart = {*prepared.manifest.held_out, *prepared.manifest.copies}
    asked = [one for place, one in enumerate(prepared.records) if place not in apart and not one.plain]
    if not asked:
        raise DataError("none of the records asks anything", where=prepared.manifest.source)
    found, cut = list[tuple[Record, str]](), 0
    for record, answer in zip(asked, _answers(prepared, asked, progress), strict=True):
        cut += answer is None
        if answer:
            found.append((record, answer))
    if not found:
        raise DataError(
            f"none of {len(asked):,} answers ends within {prepared.recipe.evaluation.max_new_tokens} tokens",
            where=prepared.recipe.model.source,
            hint="raise evaluation.max_new_tokens, or take another teacher",
        )
    talks = any(record.history for record, _ in found)
    lines = [_messages(*one) if talks else _fields(*one) for one in found]
    write_text_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return Answered(len(found), cut, len(asked) - len(found) - cut, len(apart))


def _answers(prepared: Prepared, asked: Sequence[Record], progress: Progress) -> list[str | None]:
    """Return an answer each, None where it does not end."""
    backbone, evaluation = prepared.backbone, prepared.recipe.evaluation
    with prepared.prompt.renderer(backbone.tokenizer) as renderer:
        longest = longest_of(prepared.recipe, prepared.method, backbone)
        encoded = Encoder(backbone, prepared.prompt, renderer, longest).with_turns(asked)
    # Longest first, so that what does not fit into memory is known at once.
    order = sorted(range(len(asked)), key=lambda place: -encoded[place].example.response_start)
    found: list[str | None] = [None] * len(asked)
    for first in range(0, len(order), evaluation.batch_size):
        chosen = order[first : first + evaluation.batch_size]
        for place, row in zip(chosen, _said(prepared, [encoded[place] for place in chosen]), strict=True):
            if row and row[-1] in prepared.ends:
                text = str(backbone.tokenizer.decode(row, skip_special_tokens=True))
                found[place] = prepared.frame.answer(text, encoded[place].turn.opening)
        progress("teacher: answers", first + len(chosen), len(order))
    return found


@torch.no_grad()
def _said(prepared: Prepared, some: Sequence[Encoded]) -> list[list[int]]:
    prompts = [one.example.input_ids[: one.example.response_start] for one in some]
    most = prepared.recipe.evaluation.max_new_tokens
    rows = decode(prepared.backbone.model, prompts, most, frozenset(prepared.ends), keep_end=True)
    if rows is None:
        raise ModelError("this teacher has no key-value cache", where=prepared.recipe.model.source)
    return rows


def _fields(record: Record, answer: str) -> dict[str, str]:
    return {name: getattr(record, name) for name in FIELDS} | {"response": answer}


def _messages(record: Record, answer: str) -> dict[str, Any]:
    """Return a conversation of which the last answer alone is learnt."""
    said: list[dict[str, Any]] = [
        {"role": one.role, "content": one.text, **({"weight": 0} if one.role == "assistant" else {})}
        for one in record.history
    ]
    return {
        "messages": [
            *said,
            {"role": "user", "content": record.asked},
            {"role": "assistant", "content": answer},
        ]
    }
