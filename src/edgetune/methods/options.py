"""Change a method's parts from a recipe: an option finds the part that has it, and one that no part has is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from edgetune.aggregate import AGGREGATORS, SERVER_STEPS
from edgetune.core.errors import ConfigError, nearest
from edgetune.core.part import Part, by_name
from edgetune.data.sampling import SAMPLINGS
from edgetune.directions.weighted import DRAWS
from edgetune.estimators import ESTIMATES
from edgetune.measure.objective import Answers
from edgetune.measure.scores import exact_match, token_f1
from edgetune.methods.method import TuningMethod
from edgetune.survey import SURVEYS
from edgetune.tune import TARGETS
from edgetune.updates import OPTIMISERS, SCHEDULES
from edgetune.wire import CODECS, Log, Table


@dataclass(frozen=True, slots=True)
class Slot:
    """A place of a method that one of several parts can take.

    Args:
        field: of the method.
        parts: by name.
        what: one of them in words.
    """

    field: str
    parts: Mapping[str, type[Part]]
    what: str


SLOTS: dict[str, Slot] = {
    "target": Slot("target", TARGETS, "thing to tune"),
    "draw": Slot("directions", DRAWS, "way to draw directions"),
    "optimiser": Slot("local", OPTIMISERS, "optimiser"),
    "estimate": Slot("estimate", ESTIMATES, "estimate"),
    "aggregate": Slot("aggregate", AGGREGATORS, "way to aggregate"),
    "sampling": Slot("sampling", SAMPLINGS, "way to draw batches"),
    "server": Slot("server", SERVER_STEPS, "step of the server"),
    "schedule": Slot("schedule", SCHEDULES, "schedule"),
}
"""Options that put another part into a method, in the order in which they are applied."""
STAND_INS: dict[type[Part], type[Part]] = {Log: Table, Table: Log}
"""What takes a part's place once another slot no longer gives what it needs."""
OBJECTIVES: dict[str, Answers | None] = {
    "loss": None,
    "token_f1": Answers(token_f1),
    "accuracy": Answers(exact_match),
}
"""What can be minimised, by name; the option `objective` is a slot that may be empty."""
SIZES = ("local_steps", "batch_size", "micro_batch")
"""Options that are numbers of the method itself."""
PARTS: tuple[type[Part], ...] = (
    *(kind for slot in SLOTS.values() for kind in slot.parts.values()),
    *CODECS,
    *SURVEYS,
    Answers,
)
"""All parts with options."""
OPTIONS = (*SLOTS, "objective", *SIZES, *dict.fromkeys(name for kind in PARTS for name in kind.options))
"""Option names of a recipe's [method] section."""


def with_options(method: TuningMethod, options: Mapping[str, object]) -> TuningMethod:
    """Return a variant of a method.

    Args:
        method: the published value.
        options: any of the names in `OPTIONS`; None values are left out. Parts are exchanged before their options are
            set.

    Raises:
        ConfigError: if an option is unknown, or no part of the method has it.
    """
    for name in options:
        if name not in OPTIONS:
            close = nearest(name, OPTIONS)
            raise ConfigError(
                f"no method option {name!r}", hint=f"did you mean {close!r}?" if close else None
            )
    wanted = {name: value for name, value in options.items() if value is not None}
    changed: dict[str, Any] = {name: int(str(wanted.pop(name))) for name in SIZES if name in wanted}
    parts = method.parts
    if "objective" in wanted:
        found = by_name(str(wanted.pop("objective")), OBJECTIVES, "objective")
        changed["objective"] = found
        parts.pop("objective", None)
        parts |= {"objective": found} if found else {}
    for name, slot in SLOTS.items():
        if name in wanted and slot.field in parts:
            chosen = _exchanged(method, parts, slot, wanted.pop(name), wanted)
            parts[slot.field], wanted = chosen, {**chosen.entails, **wanted}
            _follow(parts)
    for name, value in wanted.items():
        field = _having(method, parts, name)
        parts[field] = parts[field].with_option(name, value)
    return replace(method, **{**changed, **parts})


def _follow(parts: dict[str, Part]) -> None:
    """Put stand-ins where parts no longer find what they need."""
    given = frozenset[str]().union(*(part.gives for part in parts.values()))
    for field, part in parts.items():
        other = STAND_INS[type(part)]() if part.needs - given and type(part) in STAND_INS else part
        if not other.needs - given:
            parts[field] = other


def _exchanged(
    method: TuningMethod, parts: Mapping[str, Part], slot: Slot, value: object, wanted: Mapping[str, Any]
) -> Part:
    """Return the part of that name for a slot, with what the present one and the other options say."""
    made, old = by_name(str(value), slot.parts, slot.what), parts[slot.field]
    given = frozenset[str]().union(*(part.gives for part in parts.values()))
    if type(old) is made:
        return old
    try:
        return made.instead_of(old, given, wanted)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"method {method.name}", hint=error.hint) from error


def _having(method: TuningMethod, parts: Mapping[str, Part], option: str) -> str:
    """Return the field of the part that has an option.

    Raises:
        ConfigError: naming the parts that would have it.
    """
    for field, part in parts.items():
        if option in part.options:
            return field
    others = dict.fromkeys(kind.name or kind.__name__.lower() for kind in PARTS if option in kind.options)
    if option in SLOTS:
        others = dict.fromkeys(SLOTS[option].parts)
    raise ConfigError(
        f"{method.name} has no {option}: that is a setting of {' and '.join(others)}",
        hint=f"edgetune methods {method.name}",
    )


def defaults(method: TuningMethod) -> dict[str, object]:
    """Return the options that a method has, by their name in a recipe's [method] section, with their values.

    `with_options(method, defaults(method))` is the method again. An option is absent where the method has no such part;
    a part that is none of edgetune's own is named by its class.
    """
    parts = method.parts
    score = None if method.objective is None else method.objective.score
    known = {None if answers is None else answers.score: name for name, answers in OBJECTIVES.items()}
    found: dict[str, object] = {"objective": known.get(score, getattr(score, "__name__", "own"))}
    for name, slot in SLOTS.items():
        if slot.field not in parts:
            continue
        kind = type(parts[slot.field])
        found[name] = kind.name if kind in slot.parts.values() else kind.__name__
    for part in parts.values():
        found |= part.settings()
    found |= {name: cast(int, getattr(method, name)) for name in SIZES}
    return {name: found[name] for name in OPTIONS if name in found}
