"""From a recipe to everything a run needs: the model, the split data, the encoded examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.events import DataPrepared
from edgetune.data.corpus import base_records
from edgetune.data.encode import Encoded, Example, batches, encode_whole, padding_id
from edgetune.data.manifest import Manifest
from edgetune.data.records import Record
from edgetune.data.turns import Frame, Prompt
from edgetune.distil.lesson import Lesson
from edgetune.measure.machine import usable_cores
from edgetune.measure.threads import worthwhile_threads
from edgetune.measure.words import words_of
from edgetune.methods.method import TuningMethod
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.device import find_device
from edgetune.models.embedded import EMBEDDED
from edgetune.recipe.asking import asked_devices, asked_for
from edgetune.recipe.computing import computing
from edgetune.recipe.division import HELD_OUT, divide
from edgetune.recipe.encoder import Encoder, context_of, longest_of, prompt_of
from edgetune.recipe.lesson import COMPARED, check_distillation, check_taught, lesson_of
from edgetune.recipe.open_settings import recipe_method
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.residency import RESIDENCIES, check_streams
from edgetune.recipe.scoring import Scoring, scoring_of

__all__ = ["DTYPES", "Prepared", "prepare", "recipe_method"]

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


SAMPLED = 8
"""Records of a batch of the server's sample."""
TYPICAL_TOKENS = 128
"""Tokens of the forward pass by which the number of threads is chosen."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run works on.

    Args:
        recipe: the resolved recipe.
        method: the tuning method with the recipe's options.
        backbone: the base model; its generation config names `ends`.
        prompt: the prompt template.
        frame: what the template puts around an answer.
        pad_id: the padding token.
        ends: every id that ends an answer, the one that trained responses end with first.
        manifest: who holds which record.
        records: all that the manifest's positions count.
        devices: encoded private data by device; empty where nothing is going to be trained.
        held_out: evaluation records, and their encoding.
        openings: what the prompt of each already says of its response.
        calibration: the server's own sample, and its encoding; no device sees it.
        base_style: encoded records of what the base was pretrained on, to see forgetting; empty if unknown.
        scoring: how answers are scored beside Rouge-L; None if they are not.
        found: what became of the records, an event for the log.
        lesson: what the student learns in place of the loss; None if nobody teaches it.
    """

    recipe: Recipe
    method: TuningMethod
    backbone: Backbone
    prompt: Prompt
    frame: Frame
    pad_id: int
    ends: tuple[int, ...]
    manifest: Manifest
    records: list[Record]
    devices: dict[int, list[Example]]
    held_out: list[Record]
    held_out_examples: list[Example]
    openings: list[str]
    calibration: list[Record]
    calibration_examples: list[Example]
    base_style: list[Example]
    scoring: Scoring | None
    found: DataPrepared
    lesson: Lesson | None = None

    @property
    def asked(self) -> list[int]:
        """Positions of the held-out records that ask something; plain text does not."""
        return [index for index, record in enumerate(self.held_out) if not record.plain]

    @property
    def sample(self) -> list[Batch]:
        """The calibration records by batches, for what a server computes before a run."""
        return list(batches(self.calibration_examples, SAMPLED, self.pad_id))

    def answers(self, generated: Sequence[str]) -> list[str]:
        """Return the answers in what a model said to the held-out prompts, without what the template adds to them."""
        pairs = zip(generated, self.openings, strict=True)
        return [self.frame.answer(text, opening) for text, opening in pairs]

    def texts(self, records: Sequence[Record]) -> list[Encoded]:
        """Return records as the text that is trained on, with all its ids, before anything is cut off.

        Args:
            records: any, for example some of `records`, `held_out` or `calibration`.

        Raises:
            ConfigError, DataError: as `data.encode.encode_whole`.
        """
        with self.prompt.renderer(self.backbone.tokenizer) as renderer:
            return encode_whole(records, self.backbone.tokenizer, self.prompt, renderer)


def prepare(recipe: Recipe, *, split: bool = True, matrices: bool = True) -> Prepared:
    """Load, split and encode; nothing is written.

    The base model's generation config is set to end an answer at `ends`, so that whatever generates with the model or
    writes it stops where training stops.

    Args:
        recipe: everything about the run.
        split: spread records over the devices. Without, nothing is going to be trained: `devices` stays empty, what a
            run holds out is held out here too, and records too few for both are sample and evaluation at once.
        matrices: False where nothing is done with the model but what a streamed residency does without its matrices
            (`load_backbone`); another residency has them all the same.

    Raises:
        ConfigError, DataError, ModelError: naming what is wrong.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    method = recipe_method(recipe)
    check_distillation(recipe, method)
    device = find_device(recipe.model.device)
    residency = RESIDENCIES[recipe.model.residency]
    check_streams(method, residency, device)
    data = divide(recipe, split=split)
    if split:
        _refuse_large_batch(recipe, sum(map(len, data.shares)))
        _refuse_few_replies(recipe, len(data.shares))
    scoring = scoring_of(recipe.evaluation, data.held_out, data.records)
    whole, dtype = matrices or not residency.streamed, DTYPES[recipe.model.dtype]
    backbone = load_backbone(recipe.model.source, dtype=dtype, device=device, matrices=whole)
    prompt = prompt_of(recipe, backbone)
    own = recipe.data.source == EMBEDDED and split
    with prompt.renderer(backbone.tokenizer) as renderer:
        longest = longest_of(recipe, method, backbone)
        encode = Encoder(backbone, prompt, renderer, longest)
        devices = {device: encode(share) for device, share in enumerate(data.shares)}
        held = encode.with_turns(data.held_out)
        calibration_examples = encode(data.calibration)
        base_style = encode(base_records(recipe.data.held_out or HELD_OUT, recipe.seed) if own else [])
    if recipe.threads is None and device.type == "cpu":
        with computing(backbone, method) as model:
            _settle_threads(model, calibration_examples, context_of(backbone))
    ends = encode.ends()
    if ends and backbone.model.generation_config is not None:
        backbone.model.generation_config.eos_token_id = list(ends)
    texts = [record.response for record in data.records[:COMPARED]]
    lesson = lesson_of(recipe, backbone, ends, texts, longest=longest) if split else None
    check_taught(lesson, [one for share in devices.values() for one in share])
    held_out = [renderer.frame.without_own_end(record) for record in data.held_out]
    return Prepared(
        recipe=recipe,
        method=method,
        backbone=backbone,
        prompt=prompt,
        frame=renderer.frame,
        pad_id=padding_id(backbone.tokenizer),
        ends=ends,
        manifest=data.manifest,
        records=data.records,
        devices=devices,
        held_out=held_out,
        held_out_examples=[one.example for one in held],
        openings=[one.turn.opening for one in held],
        calibration=data.calibration,
        calibration_examples=calibration_examples,
        base_style=base_style,
        scoring=scoring,
        found=encode.found(
            prompt=prompt.name,
            trained=sum(map(len, devices.values())),
            held_out=len(held_out),
            calibration=len(data.calibration),
            copies=data.copies,
            notes=[*data.notes, *(scoring.notes if scoring else ())],
            ends=list(ends),
            words=words_of([record.response for record in held_out]),
        ),
        lesson=lesson,
    )


def _refuse_few_replies(recipe: Recipe, devices: int) -> None:
    """Refuse to wait for more replies than a round asks for: no round would ever change anything."""
    section = recipe.federation
    needed, least = asked_devices(devices, section.participation), section.minimum_replies
    together = asked_devices(devices, asked_for(devices, section.participation, section.over_selection))
    wanted = needed if section.buffer is None else section.buffer
    if wanted > together:
        raise ConfigError(
            f"the server steps after {wanted} replies, and {together} of {devices} devices are under way at a time",
            where="federation.buffer",
            hint=f"at most {together}, or a larger federation.participation",
        )
    if least > wanted:
        raise ConfigError(
            f"a round waits for {wanted} of {devices} devices, fewer than the {least} that it needs",
            where="federation.minimum_replies",
            hint=f"at most {wanted}, or a larger federation.{'buffer' if section.buffer else 'participation'}",
        )


def _refuse_large_batch(recipe: Recipe, trained: int) -> None:
    """Refuse a batch that somebody asked for and the data cannot fill; a method's own is cut to what there is."""
    asked = recipe.method.batch_size
    if asked is not None and asked > trained:
        raise ConfigError(
            f"a batch of {asked} records is larger than the data: {trained} are trained on",
            where="method.batch_size",
            hint=f"at most {trained}",
        )


@torch.no_grad()
def _settle_threads(model: PreTrainedModel, examples: Sequence[Example], context: int) -> None:
    """Set the CPU threads that a forward pass over a short batch is worth; nothing to do where only one is allowed."""
    many = min(TYPICAL_TOKENS, context)
    ids = [index for example in examples for index in example.input_ids][:many]
    batch = torch.tensor([ids])
    most = min(torch.get_num_threads(), usable_cores())
    worthwhile_threads(lambda: model(batch, use_cache=False), most)
