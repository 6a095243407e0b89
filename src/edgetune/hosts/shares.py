"""The shares of a simulated run's devices as files, for tests and demonstrations: real devices have their own data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import OutputError
from edgetune.core.files import owned_folder, write_text_atomic
from edgetune.data.records import Record
from edgetune.recipe.division import divide
from edgetune.recipe.recipe import Recipe

_NAME = re.compile(r"[0-9]+\.jsonl")


@dataclass(frozen=True, slots=True)
class Shares:
    """Written shares.

    Args:
        files: one a device, in the order of their numbers.
        records: how many each holds.
        notes: sentences about where the records went, without a full stop.
    """

    files: tuple[Path, ...]
    records: tuple[int, ...]
    notes: tuple[str, ...]


def split_files(recipe: Recipe, out: Path) -> Shares:
    """Write the records that each device of a run with this recipe holds.

    `hosts.examples.own_data` of a file makes the very examples that `recipe.prepare.prepare` makes for that device, in
    the same order; what is held out or the server's own sample is in none.

    Args:
        recipe: data, split, number of devices, seed.
        out: the folder; gets `<device>.jsonl`, numbers from 0, and files of an earlier call are replaced.

    Raises:
        ConfigError, DataError: as the readers, the hold-out and the split.
        OutputError: the folder cannot be written to, or holds the shares of more devices.
    Cost: the whole source in memory.
    """
    division = divide(recipe, split=True)
    shares = division.shares
    with owned_folder(out):
        _refuse_others(out, len(shares))
        files = tuple(out / f"{device}.jsonl" for device in range(len(shares)))
        for path, share in zip(files, shares, strict=True):
            write_text_atomic(path, _lines(rows_of(share)))
    return Shares(files, tuple(map(len, shares)), division.notes)


def _refuse_others(out: Path, devices: int) -> None:
    others = [path for path in sorted(out.iterdir()) if _NAME.fullmatch(path.name)]
    beyond = [path for path in others if path.name not in {f"{device}.jsonl" for device in range(devices)}]
    if beyond:
        what = f"this is a share of another split, and this one has {devices:,} devices"
        raise OutputError(what, where=beyond[0], hint="choose an empty folder")


def rows_of(records: Sequence[Record]) -> list[dict[str, object]]:
    """Return records as rows that read as these records, one a row, in a shape of `data.shapes`.

    Texts are rows of `text`; where anybody said something before, all are `messages` in which only the last answer
    has a weight; else they are rows of instruction, context, response and system.

    Args:
        records: of one source, so that they are all plain texts or none is.
    """
    if any(record.plain for record in records):
        return [{"text": record.response, "category": record.category} for record in records]
    if any(_spoken(record) for record in records):
        return [{"messages": _messages(record), "category": record.category} for record in records]
    return [_pair(record) for record in records]


def _spoken(record: Record) -> bool:
    """Say whether more was said before than a system prompt, or a blank one, for which a row has no column."""
    said = record.history
    return len(said) > 1 or any(one.role != "system" or not one.text.strip() for one in said)


def _messages(record: Record) -> list[dict[str, object]]:
    said: list[dict[str, object]] = [
        {"role": one.role, "content": one.text} | ({"weight": 0} if one.role == "assistant" else {})
        for one in record.history
    ]
    said.append({"role": "user", "content": record.instruction})
    said.append({"role": "assistant", "content": record.response})
    return said


def _pair(record: Record) -> dict[str, object]:
    system = {"system": record.history[0].text} if record.history else {}
    return {
        "instruction": record.instruction,
        "context": record.context,
        "response": record.response,
        "category": record.category,
        **system,
    }


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
