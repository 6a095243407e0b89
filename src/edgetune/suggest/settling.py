"""What a run takes for settings that its recipe leaves open: found once, kept in a cache, read again on a resume."""

from __future__ import annotations

import contextlib
import json
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from edgetune.core.cache import cache_folder
from edgetune.core.errors import ConfigError, DataError, OutputError
from edgetune.core.event_log import read_events
from edgetune.core.events import RateFound
from edgetune.core.files import write_text_atomic
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import Example
from edgetune.federation.residency import digest_of
from edgetune.recipe.open_settings import left_open, recipe_method, settled
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.residency import RESIDENCIES
from edgetune.suggest.preparing import find_prepared, work_ahead

RULE = 1
"""Number of the rule; a cache of another one is not read."""
LARGEST = 10_000
"""Bytes of an entry of the cache, generously."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@checked(frozen=True)
class Entry:
    """What the cache keeps of one range test."""

    learning_rate: Positive
    eps: Positive | None
    clear: bool
    records: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


def settle(
    prepared: Prepared, events: Path, *, single: bool, resumed: bool, progress: Progress = silent
) -> tuple[Prepared, RateFound | None]:
    """Return what a run works on with numbers for all its settings, and where they come from.

    A run that goes on takes those of its first start from its log; another finds them in the cache, or by the test.
    Only what the recipe leaves open is taken. The fingerprint of the ledger holds the numbers: where they could be
    neither read nor found again, the run is refused.

    Args:
        prepared: model, data, method; the model is left as it was.
        events: the run's log.
        single: one device holds all data.
        resumed: the folder holds a ledger.
        progress: told how far the test is.

    Returns:
        The same with numbers, and an event for the log; None if nothing was open.

    Raises:
        ConfigError: if the method is private.
        DivergenceError: as `suggest.quick.find_settings`.
    """
    names = left_open(prepared.recipe, prepared.method)
    if not names:
        return prepared, None
    if prepared.method.private:
        raise ConfigError(
            "a range test reads records, and what it finds would tell of them",
            where=f"method {prepared.method.name}",
            hint=f"name {' and '.join(f'method.{name}' for name in names)}, found on records that are nobody's secret",
        )
    found = _said(events) if resumed else None
    if found is None:
        found = _cached_or_found(prepared, single=single, progress=progress)
    if "eps" not in names:
        found = replace(found, eps=prepared.method.eps)
    if "learning_rate" not in names:
        found = replace(found, learning_rate=prepared.method.learning_rate)
    values = {name: getattr(found, name) for name in names}
    recipe = settled(prepared.recipe, values)
    return replace(prepared, recipe=recipe, method=recipe_method(recipe)), found


def _said(events: Path) -> RateFound | None:
    """Return what the newest start in a log went on with; None if it says nothing usable."""
    if not events.exists():
        return None
    lines = [line for line in read_events(events) if line["event"] == RateFound.kind]
    try:
        entry = _ENTRY.validate_python({name: lines[-1].get(name) for name in _NAMES}) if lines else None
    except ValidationError as error:
        raise DataError("the log's learning rate is damaged", where=events) from error
    return RateFound(origin="log", **asdict(entry)) if entry else None


def _cached_or_found(prepared: Prepared, *, single: bool, progress: Progress) -> RateFound:
    path = cache_folder("rates") / f"{key_of(prepared, single=single)}.json"
    entry = _read(path)
    if entry is not None:
        return RateFound(origin="cache", **asdict(entry))
    start = time.perf_counter()
    quick = find_prepared(prepared, single=single, progress=progress)
    entry = Entry(
        learning_rate=quick.learning_rate, eps=quick.eps, clear=quick.clear, records=quick.records,
        seconds=round(time.perf_counter() - start, 2),
    )  # fmt: skip
    with contextlib.suppress(
        OutputError
    ):  # a home that cannot be written to costs the next run the same time
        write_text_atomic(path, json.dumps(asdict(entry)) + "\n")
    return RateFound(origin="test", **asdict(entry))


def _read(path: Path) -> Entry | None:
    """Return an entry of the cache; what is missing, damaged or not a number is found again."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        return _ENTRY.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def key_of(prepared: Prepared, *, single: bool) -> str:
    """Name everything that the result of the test is a function of, hexadecimal digits."""
    recipe, backbone = prepared.recipe, prepared.backbone
    ahead = work_ahead(prepared, single=single)
    parts = {
        "rule": RULE,
        "base": digest_of(backbone, RESIDENCIES[recipe.model.residency].grid),
        "dtype": str(backbone.dtype),
        "device": backbone.model.device.type,
        "residency": recipe.model.residency,
        "method": prepared.method.digest,
        "records": _digest([one for share in prepared.devices.values() for one in share]),
        "seed": recipe.seed,
        "ahead": asdict(ahead),
    }
    parts |= {"lesson": prepared.lesson.digest} if prepared.lesson else {}
    parts |= {"sample": _digest(prepared.calibration_examples)} if prepared.method.target.sampled else {}
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(examples: Sequence[Example]) -> str:
    """Name encoded records in their order, that in which the test counts those that are trained on."""
    digest = sha256()
    for example in examples:
        digest.update(array("q", (len(example.input_ids), example.response_start, *example.input_ids)))
    return digest.hexdigest()


_ENTRY = TypeAdapter(Entry)
_NAMES = ("learning_rate", "eps", "clear", "records", "seconds")
