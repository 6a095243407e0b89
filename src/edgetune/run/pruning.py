"""From a base model and records to a pruned model: prune, restore, recover, and say what each step is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from edgetune.compress.structured.budget import WIDTHS, PerLayer, check_ratio
from edgetune.compress.structured.distil import distil, mean_divergence
from edgetune.compress.structured.importance import RULES, Importance, Random
from edgetune.compress.structured.modules import drop_modules
from edgetune.compress.structured.pruning import Structured, prune_model, repair
from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.keys import stream
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import Example, batches, encode_all
from edgetune.data.reading import load_records
from edgetune.recipe.encoder import longest_of
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.quality import model_quality
from edgetune.tune.placement import place_lora, trainable

SAMPLES = 256
"""Records of the calibration text, where there are as many."""
AT_ONCE = 16
"""Records of a batch that is pruned or recovered with."""
RANK, ALPHA = 8, 16.0
"""Of the adapters of a recovery, as LLM-Pruner's."""


class Recovery(Protocol):
    """What is trained towards the dense model's outputs."""

    def __call__(
        self, model: PreTrainedModel, seed: int, train: Callable[[Any, list[Any]], None]
    ) -> PreTrainedModel:
        """Choose the parameters, have them trained as `train(model, parameters)`, and return a plain model."""


def all_weights(
    model: PreTrainedModel, seed: int, train: Callable[[Any, list[Any]], None]
) -> PreTrainedModel:
    """Train every weight: best for small models; three more copies of the weights in memory."""
    train(model, [one for one in model.parameters() if one.is_floating_point()])
    return model


def adapters(model: PreTrainedModel, seed: int, train: Callable[[Any, list[Any]], None]) -> PreTrainedModel:
    """Train low-rank adapters on every linear layer and merge them into the weights.

    Source: the recovery of LLM-Pruner (arXiv 2305.11627), section 3.3, towards the dense model's outputs.
    """
    placed = place_lora(model, rank=RANK, alpha=ALPHA, seed=seed)
    train(placed, list(trainable(placed).values()))
    merged: PreTrainedModel = placed.merge_and_unload()
    return merged.requires_grad_(False)


RECOVERIES: Mapping[str, tuple[Recovery | None, float]] = {
    "none": (None, 0.0),
    "distil": (all_weights, 1e-4),
    "lora": (adapters, 1e-3),
}
"""By public name: what is trained, and its learning rate."""
MODULES = "modules"
"""The third width: whole sub-modules go."""


@dataclass(frozen=True, slots=True)
class Order:
    """What `edgetune prune` is asked to do.

    Args:
        ratio: share of the weights to remove.
        importance, width, recover: names of `RULES`, of `WIDTHS` or `MODULES`, and of `RECOVERIES`.
        compensate: restore the readers of what stays.
        calibration: file with the calibration text; the training records if None.
        spare: layers at the two ends that a width by layer leaves alone.
        steps: of the recovery.
        learning_rate: of the recovery; its own if None.
    """

    ratio: float
    importance: str = "activation"
    width: str = "uniform"
    compensate: bool = True
    calibration: Path | None = None
    recover: str = "none"
    spare: tuple[int, int] = (0, 0)
    steps: int = 200
    learning_rate: float | None = None

    def check(self) -> None:
        """Refuse, before anything is loaded, what could not be done.

        Raises:
            ConfigError: a name that is not known, naming those that are; a share or a rate out of range.
        """
        named(self.importance, RULES, "--importance")
        named(self.recover, RECOVERIES, "--recover")
        named(self.width, (*WIDTHS, MODULES), "--width")
        check_ratio(self.ratio)
        if any(self.spare) and not isinstance(WIDTHS.get(self.width), PerLayer):
            hint = "--width per_layer"
            raise ConfigError("layers are left alone only where widths differ", where="--spare", hint=hint)
        if self.steps < 1 or not 0 < (self.learning_rate or 1.0) < math.inf:
            raise ConfigError("a recovery needs a step and a positive rate", where="--recover")


@dataclass(frozen=True, slots=True)
class Step:
    """What the model is worth after a step.

    Args:
        name: of the step.
        loss, perplexity: on the held-out responses, nats and its exponential.
        rouge_l: of the answers, 0 to 100; NaN where nothing is asked.
        score: by the metric of the recipe; None without one.
        divergence: mean KL to the dense model on the held-out responses, nats.
        weights: parameters of the model.
    """

    name: str
    loss: float
    perplexity: float
    rouge_l: float
    score: float | None
    divergence: float
    weights: int


def prune_prepared(
    prepared: Prepared,
    order: Order,
    progress: Progress = silent,
    say: Callable[[Step], None] = lambda _: None,
) -> PreTrainedModel:
    """Prune a prepared model as ordered.

    Args:
        prepared: the dense model, which stays as it is, with its records.
        order: what to do.
        progress: told of the work.
        say: told of each step.

    Returns:
        The pruned model, in the type the dense one is held in.

    Raises:
        ConfigError: a name that is not known, naming those that are.
        ModelError, DataError, DivergenceError: as the parts.
    Cost: a second copy of the model; the parts' own.
    """
    order.check()
    rule, (recovery, usual) = RULES[order.importance], RECOVERIES[order.recover]
    dense, seed = prepared.backbone.model, prepared.recipe.seed
    if isinstance(rule, Random):
        rule = replace(rule, seed=seed)
    trained = [example for share in prepared.devices.values() for example in share]
    text = list(batches(_calibration(prepared, order, trained), AT_ONCE, prepared.pad_id))
    held = list(batches(prepared.held_out_examples, AT_ONCE, prepared.pad_id))

    def weigh(name: str, model: PreTrainedModel) -> None:
        quality = model_quality(model, prepared, progress, name)
        gap = 0.0 if model is dense else mean_divergence(model, dense, held)
        weights = sum(one.numel() for one in model.parameters())
        said = (quality.loss, quality.perplexity, quality.rouge_l, quality.score, gap, weights)
        say(Step(name, *said))

    weigh("dense", dense)
    model = _pruned(dense, text, order, rule, progress, weigh)
    if recovery is not None:
        drawn = _shuffled(trained, seed)
        records = list(batches(drawn, AT_ONCE, prepared.pad_id, sort_by_length=False))

        def train(one: Any, parameters: list[Any]) -> None:
            lr = order.learning_rate or usual
            distil(
                one,
                dense,
                parameters,
                records,
                steps=order.steps,
                learning_rate=lr,
                seed=seed,
                progress=progress,
            )

        model = recovery(model, seed, train)
        weigh("recovered", model)
    return model


def _pruned(
    dense: PreTrainedModel,
    text: Sequence[Batch],
    order: Order,
    rule: Importance,
    progress: Progress,
    weigh: Callable[[str, PreTrainedModel], None],
) -> PreTrainedModel:
    """Return a pruned copy, and have it weighed before and after its readers are restored."""
    if order.width == MODULES:
        model = deepcopy(dense)
        some = text[: max(1, len(text) // 4)]
        gone = drop_modules(
            model, order.ratio, lambda one: mean_divergence(one, dense, some), progress=progress
        )
        if not gone:
            raise ModelError(
                f"no sub-module is as small as {order.ratio:.0%} of the blocks",
                hint="a larger --ratio, or --width per_layer",
            )
        weigh("pruned", model)
        if order.compensate:
            repair(model, dense, text, progress)
            weigh("compensated", model)
        return model
    budget = PerLayer(*order.spare) if any(order.spare) else WIDTHS[order.width]
    method = Structured(order.ratio, rule, budget, compensate=False)
    model = deepcopy(dense)
    prune_model(model, text, method, progress)
    weigh("pruned", model)
    if order.compensate:
        del model
        model = deepcopy(dense)
        prune_model(model, text, replace(method, compensate=True), progress)
        weigh("compensated", model)
    return model


def _calibration(prepared: Prepared, order: Order, trained: Sequence[Example]) -> list[Example]:
    if order.calibration is None:
        return _shuffled(trained, prepared.recipe.seed)[:SAMPLES]
    longest = longest_of(prepared.recipe, prepared.method, prepared.backbone)
    records = load_records(order.calibration, columns=prepared.recipe.data.columns)
    return encode_all(records[:SAMPLES], prepared.backbone.tokenizer, prepared.prompt, longest)


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    return [examples[int(place)] for place in stream(seed, "prune", "records").permutation(len(examples))]


def named(name: str, known: Iterable[str], where: str) -> None:
    """Refuse a name that is not known.

    Raises:
        ConfigError: naming those that are.
    """
    listed = list(known)
    if name not in listed:
        raise ConfigError(f"{name!r} is unknown", where=where, hint=f"known: {', '.join(listed)}")


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
