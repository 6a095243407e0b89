"""From a recipe to everything a run needs: the model, the split data, the encoded examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from edgetune.core.errors import ConfigError
from edgetune.core.keys import stream
from edgetune.data.corpus import base_records, device_records
from edgetune.data.encode import Example, encode_all, padding_id
from edgetune.data.manifest import Manifest, make_manifest
from edgetune.data.prompts import Alpaca, ChatTemplate, Prompt, default_prompt
from edgetune.data.records import Record, load_records
from edgetune.data.split import DirichletByCategory, DirichletQuantity, Iid
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.embedded import EMBEDDED
from edgetune.run.recipe import DataSection, Recipe, SplitSection
from edgetune.run.residency import RESIDENCIES, check_streams

EMBEDDED_RECORDS = 1000
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
Split = Iid | DirichletByCategory | DirichletQuantity
SPLITS: dict[str, Callable[[float], Split]] = {
    "dirichlet": DirichletByCategory,
    "quantity": DirichletQuantity,
    "iid": lambda alpha: Iid(),
}
PROMPTS: dict[str, Callable[[PreTrainedTokenizerBase], Prompt]] = {
    "auto": default_prompt,
    "chat": lambda tokenizer: ChatTemplate(),
    "alpaca": lambda tokenizer: Alpaca(),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run works on.

    Args:
        recipe: the resolved recipe.
        method: the tuning method with the recipe's options.
        backbone: the base model.
        prompt: the prompt template.
        pad_id: the padding token.
        manifest: who holds which record.
        devices: encoded private data by device.
        held_out: evaluation records, and their encoding.
        calibration: the server's own sample, and its encoding; no device sees it.
        base_style: encoded records of what the base was pretrained on, to see forgetting; empty if unknown.
    """

    recipe: Recipe
    method: TuningMethod
    backbone: Backbone
    prompt: Prompt
    pad_id: int
    manifest: Manifest
    devices: dict[int, list[Example]]
    held_out: list[Record]
    held_out_examples: list[Example]
    calibration: list[Record]
    calibration_examples: list[Example]
    base_style: list[Example]


def prepare(recipe: Recipe) -> Prepared:
    """Load, split and encode; nothing is written.

    Raises:
        ConfigError, DataError, ModelError: naming what is wrong.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    method = recipe_method(recipe)
    check_streams(method, RESIDENCIES[recipe.model.residency])
    records, calibration = _records(recipe.data, recipe.seed)
    manifest = split_records(records, recipe.data, recipe.split, recipe.federation.devices, recipe.seed)
    backbone = load_backbone(recipe.model.source, dtype=DTYPES[recipe.model.dtype])
    tokenizer = backbone.tokenizer
    prompt = PROMPTS[recipe.data.prompt](tokenizer)
    answer = max(recipe.evaluation.max_new_tokens, method.objective.max_new_tokens if method.objective else 0)
    longest = min(recipe.data.max_tokens, _context(backbone) - answer)
    if longest < 8:
        raise ConfigError(
            f"the model holds {_context(backbone)} tokens, too few for answers of {answer}",
            where="evaluation.max_new_tokens",
        )

    def encoded(chosen: Sequence[Record]) -> list[Example]:
        return encode_all(chosen, tokenizer, prompt, longest)

    held_out = [records[index] for index in manifest.held_out]
    style = base_records(recipe.data.held_out, recipe.seed) if recipe.data.source == EMBEDDED else []
    return Prepared(
        recipe=recipe,
        method=method,
        backbone=backbone,
        prompt=prompt,
        pad_id=padding_id(tokenizer),
        manifest=manifest,
        devices={
            device: encoded([records[index] for index in share])
            for device, share in enumerate(manifest.devices)
        },
        held_out=held_out,
        held_out_examples=encoded(held_out),
        calibration=calibration,
        calibration_examples=encoded(calibration),
        base_style=encoded(style),
    )


def recipe_method(recipe: Recipe) -> TuningMethod:
    """Return the tuning method with the recipe's options; a decay ends with the last round if nothing else is said.

    Raises:
        ConfigError: if there is no such method, or an option does not fit it.
    """
    named = tuning_method(recipe.method.name)
    options = recipe.method.model_dump(exclude={"name"}, exclude_none=True)
    if options.get("schedule", "constant") != "constant":
        steps = recipe.federation.rounds * options.get("local_steps", named.local_steps)
        options.setdefault("schedule_steps", steps)
    return with_options(named, options)


def split_records(
    records: Sequence[Record], data: DataSection, split: SplitSection, devices: int, seed: int
) -> Manifest:
    """Hold records out and spread the rest over the devices."""
    return make_manifest(
        records,
        SPLITS[split.kind](split.alpha),
        source=data.source,
        devices=devices,
        seed=seed,
        minimum=split.minimum,
        category=data.held_out_category,
        count=data.held_out,
    )


def _records(data: DataSection, seed: int) -> tuple[list[Record], list[Record]]:
    """Return the records to split (devices' and held out) and the server's own sample."""
    if data.source == EMBEDDED:
        count = (data.records or EMBEDDED_RECORDS) + data.held_out
        records = device_records(data.calibration + count, seed)
        return records[data.calibration :], records[: data.calibration]
    records = load_records(data.source)
    order = [int(index) for index in stream(seed, "records").permutation(len(records))]
    kept_back = [index for index in order if records[index].category == data.held_out_category]
    free = [index for index in order if records[index].category != data.held_out_category]
    own, rest = free[: data.calibration], free[data.calibration :]
    if data.records is not None:
        rest = rest[: data.records if kept_back else data.records + data.held_out]
    return [records[index] for index in sorted(rest + kept_back)], [records[index] for index in own]


def _context(backbone: Backbone) -> int:
    return int(getattr(backbone.model.config, "max_position_embeddings", 0) or 1 << 20)
