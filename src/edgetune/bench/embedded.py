"""A FedKSeed step of the demo beside two plain forward passes on the same records."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch

from edgetune.bench.timing import Ratio, compare, take_turns, waiting
from edgetune.core.batch import Batch, response_loss
from edgetune.core.keys import pool_key
from edgetune.data.corpus import device_records
from edgetune.data.encode import encode_all, padding_id
from edgetune.data.prompts import default_prompt
from edgetune.directions import Hadamard
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.federation.steps import draw_batches
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import EMBEDDED
from edgetune.tune import ProjectedTuned
from edgetune.updates import Sgd

RECORDS, LONGEST = 64, 256


def bench_embedded(rounds: int = 9, steps: int = 20, size: int = 2, device: str = "cpu") -> Iterator[Ratio]:
    """Yield the ratio for the embedded model.

    Args:
        rounds: turns of every side.
        steps: steps a turn, on as many batches.
        size: records a batch.
        device: where both sides compute.
    """
    backbone = load_backbone(EMBEDDED, device=device)
    tokenizer, plain = backbone.tokenizer, copy.deepcopy(backbone.model)
    examples = encode_all(device_records(RECORDS, 0), tokenizer, default_prompt(tokenizer), LONGEST)
    drawn = draw_batches(examples, size, padding_id(tokenizer), seed=0, device=0)
    batches = [batch.to(backbone.model.device) for batch in islice(drawn, steps)]
    tuned = ProjectedTuned(backbone.model, BoundSpace(Hadamard(4096), pool_key(0)))
    tokens = sum(batch.input_ids.numel() for batch in batches) // len(batches)
    ours, theirs = f"embedded model, step of {tokens} tokens", "two forwards"
    seconds = take_turns(
        {ours: partial(_steps, tuned, batches), theirs: partial(_forwards, plain, batches)},
        rounds,
        waiting(backbone.model.device),
    )
    yield compare(seconds, ours, theirs, note=f"{steps} of each a turn")


def _steps(tuned: ProjectedTuned, batches: list[Batch]) -> None:
    estimate, local = TwoPoint(3e-3), Sgd(1e-6)
    for key, batch in enumerate(batches):
        local.step(tuned, estimate(tuned, response_loss, batch, key).update, {})


@torch.no_grad()
def _forwards(model: torch.nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        for _ in range(2):
            float(response_loss(model, batch))
