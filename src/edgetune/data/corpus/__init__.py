"""A deterministic instruction corpus over a small invented world.

Two sub-domains, village life and coast stations, and two response styles, plain and report. The base
distribution is mostly village life answered plainly; devices hold station records answered as reports. Every
prompt belongs to exactly one of the three splits, by a digest of its text, so that no prompt of one split
occurs in another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from edgetune.data.corpus.builders import BUILDERS
from edgetune.data.corpus.schema import CATEGORIES, Domain, Draft
from edgetune.data.corpus.station import STATION
from edgetune.data.corpus.village import VILLAGE
from edgetune.data.records import Record

__all__ = ["CATEGORIES", "base_records", "device_records", "pretraining_records", "split_of"]

Split = Literal["pretraining", "base", "device"]

STATION_SHARE = 0.25
"""Share of pretraining records about stations."""
REPORT_SHARE = {"village": 0.16, "station": 0.1}
"""Share of pretraining records answered in the report style, by sub-domain."""
_SHARES: dict[str, tuple[int, int]] = {"village": (224, 256), "station": (160, 160)}
"""Upper ends, out of 256, of the pretraining and the base split; the rest is the devices'."""
_PATIENCE = 400
"""Draws without a new prompt after which a split counts as exhausted."""


def split_of(domain: str, instruction: str, context: str) -> Split:
    """Say to which split a prompt belongs.

    Args:
        domain: ``village`` or ``station``.
        instruction: The instruction of the prompt.
        context: The context of the prompt, or empty.

    Returns:
        The one split that may contain the prompt.

    Raises:
        KeyError: The domain is unknown.

    """
    first, second = _SHARES[domain]
    bucket = hashlib.blake2s(f"{instruction}\n\n{context}".encode()).digest()[0]
    if bucket < first:
        return "pretraining"
    return "base" if bucket < second else "device"


def _draft(domain: Domain, split: Split, category: str, rng: random.Random) -> Draft:
    for _ in range(_PATIENCE):
        draft = BUILDERS[category](domain, rng)
        if split_of(domain.name, draft.instruction, draft.context) == split:
            return draft
    raise ValueError(f"no prompt of split {split} found for {category} in {domain.name}")


def _pretraining(rng: random.Random) -> Iterator[Record]:
    while True:
        domain = STATION if rng.random() < STATION_SHARE else VILLAGE
        draft = _draft(domain, "pretraining", rng.choice(CATEGORIES), rng)
        answer = draft.report if rng.random() < REPORT_SHARE[domain.name] else draft.plain
        yield Record(draft.instruction, draft.context, answer, draft.category)


def _unique(domain: Domain, split: Split, rng: random.Random) -> Iterator[Record]:
    seen: set[tuple[str, str]] = set()
    misses = 0
    while misses < _PATIENCE:
        draft = _draft(domain, split, rng.choice(CATEGORIES), rng)
        prompt = (draft.instruction, draft.context)
        if prompt in seen:
            misses += 1
            continue
        misses = 0
        seen.add(prompt)
        answer = draft.report if split == "device" else draft.plain
        yield Record(draft.instruction, draft.context, answer, draft.category)
    raise ValueError(f"split {split} of {domain.name} has no more than about {len(seen)} prompts")


def _checked(count: int) -> int:
    if count < 0:
        raise ValueError(f"count must be 0 or more, not {count}")
    return count


def pretraining_records(count: int, seed: int) -> list[Record]:
    """Draw what the base model is pretrained on: mostly villages, mostly plain; prompts may repeat.

    Args:
        count: Number of records, 0 or more.
        seed: Any integer; the same seed gives the same records.

    Returns:
        The records, in random order.

    Raises:
        ValueError: The count is negative.

    """
    return list(islice(_pretraining(random.Random(f"pretraining/{seed}")), _checked(count)))


def device_records(count: int, seed: int) -> list[Record]:
    """Draw what the devices hold: stations, answered as reports, no prompt twice and none in pretraining.

    Args:
        count: Number of records, 0 or more; split the list to hold some out.
        seed: Any integer; the same seed gives the same records.

    Returns:
        The records, in random order.

    Raises:
        ValueError: The count is negative or more than there are prompts.

    """
    return list(islice(_unique(STATION, "device", random.Random(f"device/{seed}")), _checked(count)))


def base_records(count: int, seed: int) -> list[Record]:
    """Draw held-out prompts of the base distribution in the base style, to see forgetting.

    Args:
        count: Number of records, 0 or more.
        seed: Any integer; the same seed gives the same records.

    Returns:
        The records, in random order; no prompt twice and none in pretraining.

    Raises:
        ValueError: The count is negative or more than there are prompts.

    """
    return list(islice(_unique(VILLAGE, "base", random.Random(f"base/{seed}")), _checked(count)))
