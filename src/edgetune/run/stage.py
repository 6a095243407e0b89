"""A stage of the main job: a value with a name, an input, an output and a cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.core.errors import ConfigError
from edgetune.core.ledger import Ledger
from edgetune.recipe.recipe import Recipe
from edgetune.run.work import Work


class Model:
    """A model in memory, and what it learnt.

    Args:
        running: what computes with the weights.
        ledger: None for the base as it was.
        form: gives the model with its weights in it, where what computes does not hold them: called once, by whoever
            asks for `model` first, and the end of `running`.
    """

    def __init__(
        self,
        running: PreTrainedModel,
        ledger: Ledger | None = None,
        form: Callable[[], PreTrainedModel] | None = None,
    ) -> None:
        self.running, self.ledger, self._form = running, ledger, form

    @property
    def model(self) -> PreTrainedModel:
        """The model with its weights in it."""
        form, self._form = self._form, None
        if form is not None:
            self.running = form()
        return self.running


@dataclass(frozen=True, slots=True)
class File:
    """A checked model file."""

    path: Path


In = TypeVar("In", Model, File)
Out = TypeVar("Out", Model, File)


@dataclass(frozen=True, slots=True)
class Stage(Generic[In, Out]):
    """One step of `edgetune run`; recipes list stages by name, in the order in which they are done.

    Args:
        name: public name, the name of its file in `run/stages`.
        summary: one sentence.
        cost: what it takes, relative to the model.
        takes: what it works on, `Model` or `File`.
        gives: what the next one gets.
        work: does it, and tells the log a row for the table.
        writes: for a stage that writes the run's model file: how that is compressed (None: not at all), so that the
            file is planned and tried before the first step.
        before: a stage that must come later in the list, because this one works on what it plans; empty for none.
        matrices: whether it needs a model that holds its weights, whatever the recipe's residency.
    """

    name: str
    summary: str
    cost: str
    takes: type[In]
    gives: type[Out]
    work: Callable[[Work, In], Out]
    writes: Callable[[Recipe], CompressionMethod | None] | None = None
    before: str = ""
    matrices: bool = True


def check_order(stages: Sequence[Stage[Any, Any]]) -> None:
    """Refuse a list of stages that cannot be done in this order.

    Args:
        stages: in order; the first gets the base model.

    Raises:
        ConfigError: naming the two that do not fit, or the one that is named twice or lacks another.
    """
    names = [stage.name for stage in stages]
    if not stages:
        raise ConfigError(
            "no stages", where="stages", hint="stages = ['base', 'tune', 'compress', 'measure']"
        )
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"the stage {min(twice)!r} is named twice", where="stages")
    if stages[0].takes is not Model:
        raise ConfigError(f"{names[0]!r} needs a file, a run begins with a model", where="stages")
    for place, stage in enumerate(stages):
        if stage.before and stage.before not in names[place + 1 :]:
            hint = f"put {stage.before!r} behind it, or leave {stage.name!r} out"
            raise ConfigError(f"{stage.name!r} is for {stage.before!r}", where="stages", hint=hint)
    for one, next in pairwise(stages):
        if one.gives is not next.takes:
            raise ConfigError(
                f"{one.name!r} gives a {one.gives.__name__.lower()}, "
                f"{next.name!r} takes a {next.takes.__name__.lower()}",
                where="stages",
                hint=f"put {next.name!r} before {one.name!r}"
                if next.takes is Model
                else "compress and export write a file",
            )
