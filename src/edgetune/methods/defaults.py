"""What a method's settings are if nobody changes them: the options of a recipe, read back from the value."""

from __future__ import annotations

from collections.abc import Mapping

from edgetune.directions import KINDS
from edgetune.directions.draw import Pool
from edgetune.estimators import Backprop
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import ESTIMATES, OBJECTIVES
from edgetune.tune import ByNorm, ByTable, FullProjected, Lora, Prefix
from edgetune.updates import Adam, AdamW, Constant, Cosine, Linear, Momentum, Sgd

OPTIMISER_NAMES = {Sgd: "sgd", Momentum: "momentum", Adam: "adam", AdamW: "adamw"}
SCHEDULE_NAMES = {Constant: "constant", Linear: "linear", Cosine: "cosine"}


def defaults(method: TuningMethod) -> dict[str, object]:
    """Return the options that a method has, by their name in a recipe's [method] section, with their values.

    `with_options(method, defaults(method))` is the method again. An option is absent where the method has no such part;
    a part that is none of edgetune's own is named by its class.
    """
    found: dict[str, object] = {
        "learning_rate": method.local.lr,
        "optimiser": _name(method.local, OPTIMISER_NAMES),
    }
    if isinstance(method.local, Momentum):
        found |= {"momentum": method.local.momentum, "history": method.local.history}
    if isinstance(method.local, Adam):
        found |= {"momentum": method.local.beta1, "history": method.local.history}
    if not isinstance(method.estimate, Backprop):
        found |= {
            "estimate": _name(method.estimate, {kind: name for name, kind in ESTIMATES.items()}),
            "eps": method.estimate.eps,
            "directions_per_step": method.estimate.directions,
        }
    if method.directions is not None:
        found["directions"] = _name(method.directions.kind, {kind: name for name, kind in KINDS.items()})
        if isinstance(method.directions, Pool):
            found["pool"] = method.directions.size
    return found | _target(method) | _steps(method)


def _target(method: TuningMethod) -> dict[str, object]:
    target = method.target
    if isinstance(target, Lora):
        return {"rank": target.rank, "alpha": target.alpha}
    if isinstance(target, Prefix):
        return {"prefix_tokens": target.tokens}
    if isinstance(target, FullProjected) and isinstance(target.scaling, ByNorm):
        return {"layer_scale": "parameter_norm"}
    if isinstance(target, FullProjected) and isinstance(target.scaling, ByTable):
        return {"layer_scale": dict(target.scaling.table)}
    return {}


def _steps(method: TuningMethod) -> dict[str, object]:
    found: dict[str, object] = {
        "local_steps": method.local_steps,
        "schedule": _name(method.schedule, SCHEDULE_NAMES),
        "batch_size": method.batch_size,
        "micro_batch": method.micro_batch,
        "by_examples": method.aggregate.by_examples,
    }
    if isinstance(method.schedule, Linear | Cosine):
        found["schedule_steps"] = method.schedule.steps
    if isinstance(method.schedule, Constant | Linear | Cosine):
        found["warmup"] = method.schedule.warmup
    score = None if method.objective is None else method.objective.score
    known = {None if answers is None else answers.score: name for name, answers in OBJECTIVES.items()}
    found["objective"] = known.get(score, getattr(score, "__name__", "own"))
    if method.objective is not None:
        found["answer_tokens"] = method.objective.max_new_tokens
    return found


def _name(part: object, known: Mapping[type, str]) -> str:
    return known.get(type(part), type(part).__name__)
