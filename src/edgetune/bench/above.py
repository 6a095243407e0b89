"""How much more memory a device's answer takes than running its model: measured in a process of its own.

python -m edgetune.bench.above RECIPE.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from edgetune.core.allocator import return_freed_blocks
from edgetune.core.batch import response_loss
from edgetune.data.encode import collate
from edgetune.federation.device import Device
from edgetune.federation.privacy import protect
from edgetune.federation.server import Server
from edgetune.federation.start import Start
from edgetune.federation.worker import Worker
from edgetune.measure.memory import PeakMemory
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe


def above_inference(recipe: Recipe) -> dict[str, int]:
    """Measure the peak of a device's round, survey and answer, beside that of a forward pass over its first batch.

        above = peak of the answer - peak of the pass,   both of the whole process, the model loaded

    On a GPU both are of what torch allocates there.

    Args:
        recipe: of the run; a few local steps suffice.

    Returns:
        `inference` and `above`, bytes.
    """
    prepared, _ = protect(prepare(recipe), single=False)
    start = Start(prepared.sample)
    worker = Worker(prepared.backbone, prepared.method, recipe.seed, start=start)
    share = prepared.devices[0]
    place = prepared.backbone.model.device
    batch = collate(share[: prepared.method.batch_size], prepared.pad_id).to(place)
    for _ in range(2):  # the first pass pays for what is made once
        with torch.no_grad(), PeakMemory() as plain:
            response_loss(worker.tuned.model, batch)
    server = Server(
        prepared.method, worker.identity, [0], participation=1.0, seed=recipe.seed, state=worker.tuned.state(),
        layers=worker.layers, initial=worker.initial,
    )  # fmt: skip
    device = Device(0, share, worker, pad_id=prepared.pad_id)
    with PeakMemory() as tuned:
        down = server.open_round()[0]
        chosen = server.choose({0: device.survey(down)} if server.surveys else {})
        device.answer(down, choice=chosen[0] if chosen else None)
    inference, answer = (
        peak.cuda_peak_bytes if place.type == "cuda" else peak.peak_bytes for peak in (plain, tuned)
    )
    return {"inference": inference, "above": max(0, answer - inference)}


if __name__ == "__main__":
    return_freed_blocks()
    said = Recipe.model_validate_json(Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps(above_inference(said)))
