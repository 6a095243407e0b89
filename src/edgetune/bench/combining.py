"""One tuned model compressed in every way: measured in a process of its own.

python -m edgetune.bench.combining CELL.json FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.sequential import compress_model
from edgetune.core.allocator import return_freed_blocks
from edgetune.core.event_log import read_events
from edgetune.core.progress import silent
from edgetune.export.tensors import hold_as_stored
from edgetune.measure.memory import PeakMemory
from edgetune.methods.catalogue import compression_method
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.preflight import plan_for
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.quality import Quality, model_quality, reference_of
from edgetune.recipe.recipe import Recipe
from edgetune.run.names import EVENTS
from edgetune.run.pipeline import run
from edgetune.run.stage import File

FLOAT = "float"
"""In place of a compression: the model in half precision."""


def combined(
    recipe: Recipe, out: Path, stages: Sequence[str], ways: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Run some stages and compress what they give in every way.

    Args:
        recipe: of the run.
        out: its folder; a killed run goes on.
        stages: that give a model.
        ways: names of compression methods, or `FLOAT`.

    Returns:
        What the run's last stage was worth and took (`loss`, `rouge_l`, `peak_memory_bytes`, the payload as
        `total_bytes`), and by way `loss`, `rouge_l`, `kl` to the model before, `size_bytes` of the file's tensors, and
        `above_bytes`, what compressing took above the loaded model.
    """
    given = run(recipe, out, stages=stages)
    if isinstance(given, File):
        raise TypeError("a file cannot be compressed again")
    prepared = prepare(recipe)
    prepared = replace(prepared, backbone=replace(prepared.backbone, model=given.model))
    reference = reference_of(given.model, prepared)
    found = {}
    for name in ways:
        method = None if name == FLOAT else compression_method(name)
        model, above = _compressed(given.model, method, prepared)
        worth = model_quality(model, prepared, silent, name, reference)
        found[name] = _row(worth) | {
            "size_bytes": plan_for(prepared, method).tensor_bytes,
            "above_bytes": above,
        }
    return _run(out), found


def _compressed(
    given: PreTrainedModel, method: CompressionMethod | None, prepared: Prepared
) -> tuple[PreTrainedModel, int]:
    model = deepcopy(given)
    plan = plan_for(prepared, method)
    batches = calibration_of(prepared).batches if method is not None and method.reads else []
    return_freed_blocks()
    with PeakMemory() as memory:
        if method is not None:
            compress_model(model, batches, method)
    hold_as_stored(model, plan.tensors)
    return model, memory.peak_bytes - memory.start_bytes


def _row(worth: Quality) -> dict[str, Any]:
    far = worth.divergence
    return {"loss": worth.loss, "rouge_l": worth.rouge_l, "kl": far.response if far else None}


def _run(out: Path) -> dict[str, Any]:
    events = list(read_events(out / EVENTS))
    rows = [one for one in events if one["event"] == "stage"]
    rounds = [one for one in events if one["event"] == "round"]
    base = next((one for one in rows if one["name"] == "base"), {})
    return {
        "base_loss": base.get("loss"),
        "base_rouge_l": base.get("rouge_l"),
        "peak_memory_bytes": max(
            (one["peak_memory_bytes"] for one in rows if one["name"] != "base"), default=0
        ),
        "total_bytes": sum(sum(one["payload_up_bytes"]) + sum(one["payload_down_bytes"]) for one in rounds),
    }


if __name__ == "__main__":
    return_freed_blocks()
    said = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    before, after = combined(
        Recipe.model_validate(said["recipe"]), Path(sys.argv[2]), said["stages"], said["ways"]
    )
    print(json.dumps({**before, "ways": after}))
