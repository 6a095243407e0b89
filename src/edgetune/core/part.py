"""What every part of a method says of itself: what it gives and needs, and which options of a recipe change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from edgetune.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
SLOPES = "slopes along directions"
DIFFERENTIATED = "slopes that are derivatives of the loss"
GRADIENTS = "dense gradients"
DIRECTIONS = "directions"
POOL = "a pool of directions"
ALL_AT_ONCE = "a pool that one transform sums (directions = hadamard or rank_one_pool)"
FRESH = "fresh directions every step"
TENSORS = "tensors that gradients reach"
ALL_WEIGHTS = "tuning all weights"
FACTORS = "pairs of low-rank factors that both move"
FIXED_FACTOR = "a first factor that stays, freeze_a = true"
RESIDUALS = "what a server adds to the base beneath the factors"
TAKEN_OFF = "a start that is taken off the base (initialiser)"
SHARED = "directions that all devices of a round share"
EVERY_SLOPE = "the slope of every step"
LINEAR = "steps that are slopes times a rate"
HELD = "weights that only the server moves"
RECORDS = "slopes of single records"
CHANCE = "batches that take every record by chance"
NOISE = "noise that hides records from whoever hears of a step"
RATED = "a learning rate that changes from step to step"
AMPLITUDES = "amplitudes of the slopes along each direction"
CARRIED = "messages that carry amplitudes"
FACTOR = "one factor of a round, which its steps follow from"
PROMPTS = "prompts in every layer, beside a base that stays"
STEPPED = "a step of the server of its own"
CHOSEN_LAYERS = "replies that hold the layers that their device was to train"
LAST_STEP = "the terms of the server's last step (keep_last)"
WRITES = "weights that skip connections reach (target = writers)"
STALE = "replies made from an earlier state (federation.buffer)"
"""What no part gives: a server that takes them asks whether any part refuses it."""

NOTHING: frozenset[str] = frozenset()


class Part:
    """The base of every part: a frozen value that is compared with the others by what it declares.

    A method is sound if each part's needs are among what all its parts give, and none of what it refuses is.
    """

    __slots__ = ()
    name: ClassVar[str] = ""
    """What a recipe calls it, where it can be chosen by name."""
    options: ClassVar[Mapping[str, str]] = {}
    """Options of a recipe's [method] section that are fields of this part: option = field."""
    entails: ClassVar[Mapping[str, object]] = {}
    """Options of other parts that choosing this one by name sets where the recipe says nothing of them."""

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or type(self).__name__

    @property
    def gives(self) -> frozenset[str]:
        """What other parts may rely on."""
        return NOTHING

    @property
    def needs(self) -> frozenset[str]:
        """What some part must give."""
        return NOTHING

    @property
    def refuses(self) -> frozenset[str]:
        """What no part may give."""
        return NOTHING

    def settings(self) -> dict[str, Any]:
        """Return the options of this part with their present values."""
        return {option: getattr(self, field) for option, field in self.options.items()}

    def with_option(self, option: str, value: object) -> Self:
        """Return this part with one option changed; the value is read as the type that the field has.

        Args:
            option: a key of `options`.
            value: a number or a truth value, or what `str` makes of one.

        Raises:
            ConfigError: as the part does for the value.
        """
        field = self.options[option]
        present = getattr(self, field)
        read = value if isinstance(present, bool | str) else type(present)(str(value))
        return replace(self, **{field: read})  # type: ignore[type-var]

    @classmethod
    def instead_of(cls, old: Part, given: frozenset[str], wanted: Mapping[str, Any]) -> Self:
        """Return a part of this class in place of another one; what both call alike keeps its value.

        Args:
            old: the part that is replaced.
            given: what the method's other parts give.
            wanted: options that are asked for at the same time.

        Raises:
            ConfigError: if this class needs a value that the other had not.
        """
        known = old.settings() | {option: value for option, value in wanted.items() if value is not None}
        shared = {field: known[option] for option, field in cls.options.items() if option in known}
        try:
            return cls(**shared)
        except TypeError as error:
            given_by = signature(cls).parameters
            missing = ", ".join(
                option
                for option, field in cls.options.items()
                if option not in known and given_by[field].default is Parameter.empty
            )
            raise ConfigError(f"{cls.name} in place of {old.title} needs {missing}") from error


def misfit(parts: Mapping[str, Part]) -> str | None:
    """Return one sentence about the first part that does not fit the others, or None if all fit.

    Args:
        parts: by the field of the method that holds them.
    """
    given = frozenset[str]().union(*(part.gives for part in parts.values()))
    for part in parts.values():
        for need in sorted(part.needs - given):
            return f"{part.title} needs {need}"
        for both in sorted(part.refuses & given):
            return f"{part.title} does not go with {both}"
    return None


def by_name(name: str, known: Mapping[str, T], what: str) -> T:
    """Look a part up by its name.

    Raises:
        ConfigError: naming the nearest, or all that are known.
    """
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"no {what} called {name!r}", hint=hint)
    return known[name]


def slopes_as(values: str) -> str:
    """Name what slopes are whose numbers are written in some way."""
    return f"slopes written as {values}"


def pool_of(size: int) -> str:
    """Name what a pool of so many directions gives."""
    return f"a pool of {size:,} directions"
