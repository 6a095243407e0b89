"""Change a method's parts from a recipe: every option is one `replace`, and an option that does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from edgetune.core.errors import ConfigError, nearest
from edgetune.directions import KINDS, Hadamard, Kind
from edgetune.directions.draw import Directions, Fresh, Pool
from edgetune.estimators import TwoPoint
from edgetune.methods.method import TuningMethod
from edgetune.tune import Lora
from edgetune.wire import SeedTable

Option = Callable[[TuningMethod, object], TuningMethod]


def with_options(method: TuningMethod, options: Mapping[str, object]) -> TuningMethod:
    """Return a variant of a method.

    Args:
        method: the published value.
        options: any of `learning_rate`, `eps`, `directions`, `pool`, `rank`, `alpha`, `local_steps`, `batch_size`,
            `by_examples`; None values are left out.

    Raises:
        ConfigError: if an option is unknown or the method has no such part.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            close = nearest(name, OPTIONS)
            raise ConfigError(
                f"no method option {name!r}", hint=f"did you mean {close!r}?" if close else None
            )
        if value is not None:
            method = OPTIONS[name](method, value)
    return method


def _refuse(method: TuningMethod, part: str) -> ConfigError:
    return ConfigError(f"{method.name} has no {part}", hint=f"edgetune methods {method.name}")


def _learning_rate(method: TuningMethod, value: object) -> TuningMethod:
    return replace(method, local=replace(method.local, lr=float(str(value))))


def _eps(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.estimate, TwoPoint):
        raise _refuse(method, "perturbation radius")
    return replace(method, estimate=TwoPoint(float(str(value))))


def _pooled(method: TuningMethod, kind: type[Kind], size: int) -> TuningMethod:
    made = Hadamard(size) if kind is Hadamard else kind()
    return replace(method, directions=Pool(made, size), codec=SeedTable(size))


def _pool(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.directions, Pool):
        raise _refuse(method, "pool of directions")
    return _pooled(method, type(method.directions.kind), int(str(value)))


def _directions(method: TuningMethod, value: object) -> TuningMethod:
    name = str(value)
    if method.directions is None:
        raise _refuse(method, "directions")
    if name not in KINDS:
        close = nearest(name, KINDS)
        raise ConfigError(
            f"no directions called {name!r}",
            hint=f"did you mean {close!r}?" if close else f"known: {', '.join(KINDS)}",
        )
    if isinstance(method.directions, Pool):
        return _pooled(method, KINDS[name], method.directions.size)
    if KINDS[name] is Hadamard:
        raise _refuse(method, "pool, which Hadamard directions need")
    fresh: Directions = Fresh(KINDS[name]())
    return replace(method, directions=fresh)


def _rank(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.target, Lora):
        raise _refuse(method, "rank")
    return replace(method, target=replace(method.target, rank=int(str(value))))


def _alpha(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.target, Lora):
        raise _refuse(method, "alpha")
    return replace(method, target=replace(method.target, alpha=float(str(value))))


OPTIONS: dict[str, Option] = {
    "learning_rate": _learning_rate,
    "eps": _eps,
    "pool": _pool,
    "directions": _directions,
    "rank": _rank,
    "alpha": _alpha,
    "local_steps": lambda method, value: replace(method, local_steps=int(str(value))),
    "batch_size": lambda method, value: replace(method, batch_size=int(str(value))),
    "by_examples": lambda method, value: replace(
        method, aggregate=replace(method.aggregate, by_examples=bool(value))
    ),
}
"""Option names of a recipe's [method] section and what each replaces."""
