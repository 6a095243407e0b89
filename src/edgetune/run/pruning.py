"""From a dense model and text to a pruned model: prune, restore, recover; behind `edgetune prune` and the stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from edgetune.compress.structured.budget import WIDTHS, Budget, PerLayer
from edgetune.compress.structured.distil import distil, mean_divergence
from edgetune.compress.structured.importance import RULES, Importance, Random
from edgetune.compress.structured.modules import drop_modules
from edgetune.compress.structured.pruning import Structured, prune_model, repair
from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.events import Listener, ignore
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import batches
from edgetune.recipe.calibration import calibration_of, learnable
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.quality import model_loss, model_quality, perplexity_of
from edgetune.recipe.sections import PruningSection
from edgetune.run.recoveries import RECOVERIES

AT_ONCE = 16
"""Records of a batch that is recovered with."""
MODULES = "modules"
"""The third width: whole sub-modules go."""

Weigh = Callable[[str, PreTrainedModel], None]
"""Told of the model after every step, by the step's name."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the model is worth after a step.

    Args:
        name: dense, pruned, compensated or recovered.
        loss, perplexity: on the held-out responses, nats and its exponential.
        divergence: mean KL of the predictions of held-out response tokens to the dense model's, nats.
        weights: parameters of the model.
        rouge_l: of the answers, 0 to 100; NaN where nothing is asked, or nobody listened.
        score: by the metric of the recipe; None without one.
    """

    name: str
    loss: float
    perplexity: float
    divergence: float
    weights: int
    rouge_l: float = math.nan
    score: float | None = None


class Weighing:
    """Measures a model after every step on the held-out records, and keeps what it found.

    Args:
        prepared: the records.
        dense: what predictions are compared with.
        progress: told of answers.
        answers: have the model answer as well, which costs a greedy answer a record.
    """

    def __init__(
        self, prepared: Prepared, dense: PreTrainedModel, progress: Progress = silent, *, answers: bool
    ) -> None:
        self.steps: list[Step] = []
        """What was found, in order."""
        self._prepared, self._dense, self._progress, self._answers = prepared, dense, progress, answers
        size = prepared.recipe.evaluation.batch_size
        self._held = list(batches(prepared.held_out_examples, size, prepared.pad_id))

    def __call__(self, name: str, model: PreTrainedModel) -> None:
        """Measure the model."""
        gap = 0.0 if model is self._dense else mean_divergence(model, self._dense, self._held)
        weights = sum(one.numel() for one in model.parameters())
        if self._answers:
            found = model_quality(model, self._prepared, self._progress, name)
            self.steps.append(
                Step(name, found.loss, found.perplexity, gap, weights, found.rouge_l, found.score)
            )
        else:
            loss = model_loss(model, self._prepared.held_out_examples, self._prepared)
            self.steps.append(Step(name, loss, perplexity_of(loss), gap, weights))


def check_pruning(section: PruningSection) -> None:
    """Refuse, before anything is loaded, settings that do not fit together.

    Raises:
        ConfigError: layers are to be left alone where all have one width.
    """
    if any(section.spare) and not isinstance(WIDTHS.get(section.width), PerLayer):
        hint = "--width per_layer, or --set pruning.width=per_layer"
        raise ConfigError("layers are left alone only where widths differ", where="pruning.spare", hint=hint)


def shape_of_pruned(model: PreTrainedModel, section: PruningSection) -> PreTrainedModel:
    """Return a model without values of the shape that pruning gives, or of a like one where values decide it.

    Of a uniform width the shape is exact. It is how a run finds out beforehand what pruning would refuse, and what the
    writing of the pruned model would.

    Raises:
        ConfigError, ModelError: as `prune_model` and `drop_modules`, but for what only values can tell.
    Cost: no memory for weights.
    """
    with torch.device("meta"):
        empty: PreTrainedModel = type(model)(deepcopy(model.config))
    if section.width == MODULES:
        _refuse_nothing(drop_modules(empty, section.ratio, lambda _: 0.0), section)
    else:
        prune_model(empty, [], Structured(section.ratio, Random(), _budget(section), compensate=False))
    return empty


def prune_prepared(
    prepared: Prepared,
    dense: PreTrainedModel,
    *,
    listener: Listener = ignore,
    progress: Progress = silent,
    weigh: Weigh = lambda *_: None,
) -> PreTrainedModel:
    """Prune a model as its recipe's section says, on text that is the server's to see.

    Args:
        prepared: recipe and records; the text is `calibration_of`, a recovery's is `learnable`.
        dense: the model; it stays as it is.
        listener: told what is calibrated on.
        progress: told of the work.
        weigh: told of the dense model and of that after each step.

    Returns:
        The pruned model, in the type the dense one is held in.

    Raises:
        ConfigError, ModelError, DataError, DivergenceError: as the parts.
    Cost: a second copy of the model; the parts' own.
    """
    section, seed = prepared.recipe.pruning, prepared.recipe.seed
    check_pruning(section)
    rule = RULES[section.importance]
    if isinstance(rule, Random):
        rule = replace(rule, seed=seed)
    calibration = calibration_of(prepared)
    listener(calibration.event)
    weigh("dense", dense)
    model = _pruned(dense, calibration.batches, section, rule, progress, weigh)
    recovery, usual = RECOVERIES[section.recover]
    if recovery is not None:
        examples = learnable(prepared, section.steps * AT_ONCE)
        train = partial(
            _train,
            dense=dense,
            records=list(batches(examples, AT_ONCE, prepared.pad_id, sort_by_length=False)),
            steps=section.steps,
            learning_rate=section.learning_rate or usual,
            seed=seed,
            progress=progress,
        )
        model = recovery(model, seed, train)
        weigh("recovered", model)
    return model


def _train(
    student: PreTrainedModel,
    parameters: list[torch.nn.Parameter],
    *,
    dense: PreTrainedModel,
    records: Sequence[Batch],
    steps: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
) -> None:
    distil(
        student, dense, parameters, records, steps=steps, learning_rate=learning_rate, seed=seed, progress=progress
    )  # fmt: skip


def _pruned(
    dense: PreTrainedModel,
    text: Sequence[Batch],
    section: PruningSection,
    rule: Importance,
    progress: Progress,
    weigh: Weigh,
) -> PreTrainedModel:
    """Return a pruned copy, and have it weighed before and after its readers are restored."""
    model = deepcopy(dense)
    if section.width == MODULES:
        some = text[: max(1, len(text) // 4)]

        def far(one: PreTrainedModel) -> float:
            return mean_divergence(one, dense, some)

        _refuse_nothing(drop_modules(model, section.ratio, far, progress=progress), section)
        weigh("pruned", model)
        if section.compensate:
            repair(model, dense, text, progress)
            weigh("compensated", model)
        return model
    method = Structured(section.ratio, rule, _budget(section), compensate=False)
    prune_model(model, text, method, progress)
    weigh("pruned", model)
    if section.compensate:
        del model
        model = deepcopy(dense)
        prune_model(model, text, replace(method, compensate=True), progress)
        weigh("compensated", model)
    return model


def _budget(section: PruningSection) -> Budget:
    return PerLayer(*section.spare) if any(section.spare) else WIDTHS[section.width]


def _refuse_nothing(gone: Sequence[object], section: PruningSection) -> None:
    if not gone:
        raise ModelError(
            f"no sub-module is as small as {section.ratio:.0%} of the blocks",
            hint="a larger --ratio, or --width per_layer",
        )


def settled_as_stored(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round a model's weights to the type they will be stored in, in place.

    Raises:
        ModelError: if one is too large for it.
    """
    for name, weight in model.named_parameters():
        rounded = weight.data.to(dtype)
        if not math.isfinite(float(rounded.float().abs().max())):
            raise ModelError(
                f"a weight is too large for {dtype}", where=name, hint="--set model.dtype=float32"
            )
        weight.data = rounded
