"""What a compression is calibrated on: a text, other records, or those of the recipe that nothing is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.batch import Batch
from edgetune.core.compression_events import Calibrated
from edgetune.core.errors import DataError
from edgetune.core.keys import stream
from edgetune.data.encode import Example, batches, encode_fitting, shorten
from edgetune.data.holdout import text_of
from edgetune.data.packing import documents, pack
from edgetune.data.reading import load_source
from edgetune.data.records import Record
from edgetune.recipe.encoder import context_of, longest_of
from edgetune.recipe.prepare import Prepared

ENOUGH = 16_384
"""Tokens that are calibrated on where nobody says a number, unless a layer's inputs are many: 32 sequences of 512."""
TIMES_WIDEST = 4
"""Tokens for every input of the widest layer."""
LONGEST = 2_048
"""Tokens of a sequence at most: what calibration of language models is measured with."""
TOGETHER = 2_048
"""Tokens of a batch, or one record: the widest activations of a block are of so many rows."""
SOME = 64
"""Records that are encoded at a time."""
TEXT = (".txt", ".raw", ".text")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a compression is calibrated on.

    Args:
        batches: token ids; padding is masked.
        event: the same in numbers.
    """

    batches: list[Batch]
    event: Calibrated


def calibration_of(prepared: Prepared) -> Calibration:
    """Return what a recipe's compression is calibrated on; prompts and responses count alike.

    - `compression.calibration` names a text: its documents, packed (`data.packing.pack`) to the model's full context,
      at most LONGEST tokens. Records of plain text are packed alike.
    - It names records: those, in random order, without copies of what is held out.
    - It is not set: the server's own sample; where no device holds records of the recipe (`edgetune compress`), all
      others that are not held out follow it.

    Args:
        prepared: model, records, recipe.

    Raises:
        ConfigError: the records or their template do not fit the model.
        DataError: no such file, or there is no token to calibrate on.
    Cost: the tokenising of about as many tokens as are wanted.
    """
    section = prepared.recipe.compression
    widest = widest_input(prepared.backbone.model)
    tokens = section.calibration_tokens or max(ENOUGH, TIMES_WIDEST * widest)
    if section.calibration is None:
        name = "sample" if prepared.devices else "records"
        found = _of_recipe(prepared, tokens, asked=section.calibration_tokens is not None)
    else:
        name = section.calibration
        found = _of_source(prepared, section.calibration, tokens)
    total = sum(len(one.input_ids) for one in found)
    if not total:
        raise DataError(
            "there is no token to calibrate on", where=name, hint="give a text with --calibration"
        )
    longest = max(len(one.input_ids) for one in found)
    size = min(prepared.recipe.evaluation.batch_size, max(1, TOGETHER // longest))
    return Calibration(
        list(batches(found, size, prepared.pad_id)), Calibrated(name, total, len(found), widest)
    )


def learnable(prepared: Prepared, most: int) -> list[Example]:
    """Return what a server may train a pruned model on: what it may calibrate on, without a bound on the tokens.

    That is the text that `compression.calibration` names, the server's own sample, and where no device holds records
    of the recipe all others that are not held out.

    Args:
        prepared: model, records, recipe.
        most: examples that are enough.

    Raises:
        ConfigError, DataError: as `calibration_of`.
    Cost: the tokenising of so many records at most.
    """
    section = prepared.recipe.compression
    longest = longest_of(prepared.recipe, prepared.method, prepared.backbone)
    found = _of_recipe(prepared, most * longest, asked=False)
    if section.calibration is not None:
        found = _of_source(prepared, section.calibration, most * longest) + found
    order = stream(prepared.recipe.seed, "recovery").permutation(len(found))[:most]
    return [found[int(place)] for place in order]


def widest_input(model: nn.Module) -> int:
    """Return the greatest input dimension of a linear layer, the head left out: the side of the largest Hessian."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    widths = [
        module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]
    return max(widths, default=0)


def _of_recipe(prepared: Prepared, tokens: int, *, asked: bool) -> list[Example]:
    """Return the server's own sample, all of it unless a number is asked for, and what else there is up to it."""
    own = prepared.calibration_examples
    if asked:
        own = _enough(own, tokens)
    missing = tokens - sum(len(one.input_ids) for one in own)
    if prepared.devices or missing <= 0:
        return own
    known = {text_of(record) for record in prepared.calibration}
    others = [record for record in _not_held_out(prepared, prepared.records) if text_of(record) not in known]
    longest = longest_of(prepared.recipe, prepared.method, prepared.backbone)
    return [*own, *_encoded(prepared, others, missing, longest)]


def _of_source(prepared: Prepared, source: str, tokens: int) -> list[Example]:
    length = min(LONGEST, context_of(prepared.backbone))
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in TEXT:
        return _packed(prepared, documents(path), tokens, length)
    records = _not_held_out(prepared, load_source(source).records)
    if all(record.plain for record in records):
        return _packed(prepared, (record.response for record in records), tokens, length)
    return _encoded(prepared, records, tokens, length)


def _not_held_out(prepared: Prepared, records: Iterable[Record]) -> list[Record]:
    """Leave out what is measured on: held-out texts, and everything of their conversations."""
    away = [prepared.records[index] for index in prepared.manifest.held_out]
    texts, talks = {text_of(record) for record in away}, {record.conversation for record in away} - {""}
    return [record for record in records if text_of(record) not in texts and record.conversation not in talks]


def _packed(prepared: Prepared, texts: Iterable[str], tokens: int, length: int) -> list[Example]:
    tokenizer, seed = prepared.backbone.tokenizer, prepared.recipe.seed
    rows = pack(texts, tokenizer, length=length, tokens=tokens, seed=seed)
    return [Example(row, 1) for row in rows]


def _encoded(prepared: Prepared, records: Sequence[Record], tokens: int, longest: int) -> list[Example]:
    """Return as many records, in random order, as make so many tokens; the last may be too long."""
    order = stream(prepared.recipe.seed, "calibration").permutation(len(records))

    def examples() -> Iterator[Example]:
        tokenizer, prompt = prepared.backbone.tokenizer, prepared.prompt
        with prompt.renderer(tokenizer) as renderer:
            for start in range(0, len(order), SOME):
                some = [records[int(place)] for place in order[start : start + SOME]]
                for one in encode_fitting(some, tokenizer, prompt, renderer, longest):
                    yield shorten(one.example, longest)

    return _enough(examples(), tokens)


def _enough(examples: Iterable[Example], tokens: int) -> list[Example]:
    found, total = list[Example](), 0
    for one in examples:
        if total >= tokens:
            break
        found.append(one)
        total += len(one.input_ids)
    return found
