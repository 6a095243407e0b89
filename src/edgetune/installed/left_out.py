"""What an adapter leaves out of a fine-tune, as a distance of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch

from edgetune.core.errors import DataError
from edgetune.data.corpus import base_records
from edgetune.data.encode import Example, batches, encode_whole, padding_id, shorten
from edgetune.data.packing import documents, pack
from edgetune.data.prompts import default_prompt
from edgetune.installed.base import Base
from edgetune.installed.change import Change
from edgetune.measure.divergence import Divergence, Reference
from edgetune.models.backbone import Backbone, load_backbone

TOKENS, LONGEST, RECORDS, TOGETHER = 2_048, 256, 64, 4
"""Tokens that are compared, of a sequence, records that make about as many, and sequences a batch."""


@torch.no_grad()
def divergence_without(
    base: Base, change: Change, left: Iterable[str], text: Path | None = None
) -> Divergence:
    """Return how far the predictions of a fine-tune are from those of one without some parameters' change.

        KL(tuned || tuned, but for these as the base has them)

    Args:
        base: what the change belongs to.
        change: the fine-tune.
        left: the parameters.
        text: a text file to predict; the package's own records if not given.

    Raises:
        DataError: if the text has no token.
        ModelError: if the base cannot be loaded.
    Cost: the model in float32 in memory, and two forward passes over some thousand tokens.
    """
    backbone = load_backbone(base.path)
    wanted = list(batches(_examples(backbone, text), TOGETHER, padding_id(backbone.tokenizer)))
    if not wanted:
        raise DataError("there is no token to compare predictions on", where=text)
    before, missing = dict[str, torch.Tensor](), set(left)
    for name, weight in backbone.model.named_parameters():
        if change.touches(name):
            if name in missing:
                before[name] = weight.data
            weight.data = change.of(name, weight.detach().clone())
    reference = Reference(backbone.model, wanted)
    for name, values in before.items():
        backbone.model.get_parameter(name).data = values
    return reference.of(backbone.model)


def _examples(backbone: Backbone, text: Path | None) -> Sequence[Example]:
    tokenizer = backbone.tokenizer
    length = min(LONGEST, int(getattr(backbone.model.config, "max_position_embeddings", 0) or LONGEST))
    if text is not None:
        rows = pack(documents(text), tokenizer, length=length, tokens=TOKENS, seed=0)
        return [Example(row, 1) for row in rows]
    prompt = default_prompt(tokenizer)
    with prompt.renderer(tokenizer) as renderer:
        encoded = encode_whole(base_records(RECORDS, 0), tokenizer, prompt, renderer)
        return [shorten(one.example, length) for one in islice(encoded, RECORDS)]
