"""Change a method's parts from a recipe: every option is one `replace`, and an option that does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from edgetune.core.errors import ConfigError, nearest
from edgetune.directions import KINDS, Hadamard, Kind
from edgetune.directions.draw import Directions, Fresh, Pool
from edgetune.estimators import Backprop, OneSided, TwoPoint
from edgetune.measure.objective import Answers
from edgetune.measure.scores import exact_match, token_f1
from edgetune.methods.method import TuningMethod
from edgetune.tune import ByNorm, ByTable, FullProjected, Lora, Prefix
from edgetune.updates import Adam, AdamW, Constant, Cosine, Linear, Momentum, Optimiser, Schedule, Sgd
from edgetune.wire import SeedTable

Option = Callable[[TuningMethod, object], TuningMethod]
T = TypeVar("T")
HISTORY = 64
"""Slopes that momentum and Adam remember of fresh seeds: 0.9^64 is 0.1 %."""
OPTIMISERS: dict[str, Callable[[float, int], Optimiser]] = {
    "sgd": lambda lr, history: Sgd(lr),
    "momentum": lambda lr, history: Momentum(lr, history=history),
    "adam": lambda lr, history: Adam(lr, history=history),
    "adamw": lambda lr, history: AdamW(lr),
}
SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda steps: Constant(),
    "linear": Linear,
    "cosine": Cosine,
}
OBJECTIVES: dict[str, Answers | None] = {
    "loss": None,
    "token_f1": Answers(token_f1),
    "accuracy": Answers(exact_match),
}
ESTIMATES: dict[str, type[TwoPoint] | type[OneSided]] = {"two_point": TwoPoint, "one_sided": OneSided}


def with_options(method: TuningMethod, options: Mapping[str, object]) -> TuningMethod:
    """Return a variant of a method.

    Args:
        method: the published value.
        options: any of the names in `OPTIONS`, applied in that order; None values are left out.

    Raises:
        ConfigError: if an option is unknown or the method has no such part.
    """
    for name in options:
        if name not in OPTIONS:
            close = nearest(name, OPTIONS)
            raise ConfigError(
                f"no method option {name!r}", hint=f"did you mean {close!r}?" if close else None
            )
    for name, change in OPTIONS.items():
        if options.get(name) is not None:
            method = change(method, options[name])
    return method


def _refuse(method: TuningMethod, part: str) -> ConfigError:
    return ConfigError(f"{method.name} has no {part}", hint=f"edgetune methods {method.name}")


def _learning_rate(method: TuningMethod, value: object) -> TuningMethod:
    return replace(method, local=replace(method.local, lr=float(str(value))))


def _eps(method: TuningMethod, value: object) -> TuningMethod:
    if isinstance(method.estimate, Backprop):
        raise _refuse(method, "perturbation radius")
    return replace(method, estimate=replace(method.estimate, eps=float(str(value))))


def _estimate(method: TuningMethod, value: object) -> TuningMethod:
    if isinstance(method.estimate, Backprop):
        raise _refuse(method, "forward-only estimate")
    made = _named(value, ESTIMATES, "estimate")
    return replace(method, estimate=made(method.estimate.eps, method.estimate.directions))


def _directions_per_step(method: TuningMethod, value: object) -> TuningMethod:
    if isinstance(method.estimate, Backprop):
        raise _refuse(method, "directions")
    return replace(method, estimate=replace(method.estimate, directions=int(str(value))))


def _optimiser(method: TuningMethod, value: object) -> TuningMethod:
    made = _named(value, OPTIMISERS, "optimiser")
    return replace(method, local=made(method.local.lr, 0 if method.pool_size else HISTORY))


def _momentum(method: TuningMethod, value: object) -> TuningMethod:
    if isinstance(method.local, Momentum):
        return replace(method, local=replace(method.local, momentum=float(str(value))))
    if isinstance(method.local, Adam):
        return replace(method, local=replace(method.local, beta1=float(str(value))))
    raise _refuse(method, "momentum")


def _history(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.local, Momentum | Adam):
        raise _refuse(method, "history of slopes")
    return replace(method, local=replace(method.local, history=int(str(value))))


def _named(value: object, known: Mapping[str, T], what: str) -> T:
    """Look a part up by its name."""
    name = str(value)
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"no {what} called {name!r}", hint=hint)
    return known[name]


def _pooled(method: TuningMethod, kind: type[Kind], size: int) -> TuningMethod:
    made = Hadamard(size) if kind is Hadamard else kind()
    return replace(method, directions=Pool(made, size), codec=SeedTable(size))


def _pool(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.directions, Pool):
        raise _refuse(method, "pool of directions")
    return _pooled(method, type(method.directions.kind), int(str(value)))


def _directions(method: TuningMethod, value: object) -> TuningMethod:
    if method.directions is None:
        raise _refuse(method, "directions")
    kind = _named(value, KINDS, "directions")
    if isinstance(method.directions, Pool):
        return _pooled(method, kind, method.directions.size)
    if kind is Hadamard:
        raise _refuse(method, "pool, which Hadamard directions need")
    fresh: Directions = Fresh(kind())
    return replace(method, directions=fresh)


def _rank(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.target, Lora):
        raise _refuse(method, "rank")
    return replace(method, target=replace(method.target, rank=int(str(value))))


def _alpha(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.target, Lora):
        raise _refuse(method, "alpha")
    return replace(method, target=replace(method.target, alpha=float(str(value))))


def _objective(method: TuningMethod, value: object) -> TuningMethod:
    return replace(method, objective=_named(value, OBJECTIVES, "objective"))


def _answer_tokens(method: TuningMethod, value: object) -> TuningMethod:
    if method.objective is None:
        raise _refuse(method, "answers: its objective is the loss")
    return replace(method, objective=replace(method.objective, max_new_tokens=int(str(value))))


def _schedule(method: TuningMethod, value: object) -> TuningMethod:
    return replace(method, schedule=_named(value, SCHEDULES, "schedule")(method.local_steps))


def _schedule_steps(method: TuningMethod, value: object) -> TuningMethod:
    if isinstance(method.schedule, Constant):
        raise ConfigError("a constant schedule has no end", hint="choose method.schedule linear or cosine")
    return replace(method, schedule=replace(method.schedule, steps=int(str(value))))


def _layer_scale(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.target, FullProjected):
        raise _refuse(method, "layers to scale")
    if isinstance(value, Mapping):
        table = tuple((str(part), float(str(scale))) for part, scale in value.items())
        return replace(method, target=replace(method.target, scaling=ByTable(table)))
    scaling = _named(value, {"parameter_norm": ByNorm()}, "layer scale")
    return replace(method, target=replace(method.target, scaling=scaling))


def _prefix_tokens(method: TuningMethod, value: object) -> TuningMethod:
    if not isinstance(method.target, Prefix):
        raise _refuse(method, "prefix")
    return replace(method, target=replace(method.target, tokens=int(str(value))))


OPTIONS: dict[str, Option] = {
    "optimiser": _optimiser,
    "momentum": _momentum,
    "history": _history,
    "learning_rate": _learning_rate,
    "estimate": _estimate,
    "eps": _eps,
    "pool": _pool,
    "directions": _directions,
    "directions_per_step": _directions_per_step,
    "rank": _rank,
    "alpha": _alpha,
    "layer_scale": _layer_scale,
    "prefix_tokens": _prefix_tokens,
    "local_steps": lambda method, value: replace(method, local_steps=int(str(value))),
    "schedule": _schedule,
    "schedule_steps": _schedule_steps,
    "warmup": lambda method, value: replace(
        method, schedule=replace(method.schedule, warmup=int(str(value)))
    ),
    "objective": _objective,
    "answer_tokens": _answer_tokens,
    "batch_size": lambda method, value: replace(method, batch_size=int(str(value))),
    "micro_batch": lambda method, value: replace(method, micro_batch=int(str(value))),
    "by_examples": lambda method, value: replace(
        method, aggregate=replace(method.aggregate, by_examples=bool(value))
    ),
}
"""Option names of a recipe's [method] section and what each replaces."""
