"""FedPETuning and FedAvg: one trainer for all targets, bytes of the tuned tensors only, files refused in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.data.encode import Example
from edgetune.federation.device import Device
from edgetune.federation.server import Server
from edgetune.federation.worker import Worker
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.recipe.recipe import Recipe
from edgetune.run import pipeline
from edgetune.tune import Adapter, FullProjected, Lora
from edgetune.updates import AdamW

PUBLISHED = tuning_method("fedpetuning")
WIDTH, INNER, LAYERS, VOCABULARY = 32, 64, 2, 100
SMALL = {"local_steps": 1, "batch_size": 2, "micro_batch": 0}
LINEAR = 4 * [WIDTH + WIDTH] + 3 * [WIDTH + INNER]
MATRICES = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * INNER
NUMBERS = {
    "full": 2 * VOCABULARY * WIDTH + LAYERS * (MATRICES + 2 * WIDTH) + WIDTH,
    "lora": LAYERS * 8 * (sum(LINEAR) - WIDTH),
    "adapter": LAYERS * 2 * (2 * 2 * WIDTH + 2 + WIDTH),
    "prefix": LAYERS * 5 * WIDTH,
    "linear": VOCABULARY * WIDTH + LAYERS * MATRICES,
    "bitfit": (2 * LAYERS + 1) * WIDTH,
}


def test_the_published_defaults() -> None:
    assert (PUBLISHED.target, PUBLISHED.local, PUBLISHED.batch_size) == (Lora(8, 8.0), AdamW(1e-3), 32)
    assert with_options(PUBLISHED, {"target": "adapter"}).target == Adapter(reduction=16)
    assert tuning_method("fedavg").target == FullProjected()


@pytest.mark.parametrize("target", NUMBERS)
def test_a_payload_is_the_tuned_tensors(target: str, save_tiny: Any) -> None:
    method = with_options(PUBLISHED, {"target": target, **SMALL})
    worker = Worker(load_backbone(save_tiny()), method, 1)
    device = Device(0, [Example((1, 2, 3, 7, 8, 0), 3)], worker, pad_id=0)
    server = Server(method, worker.identity, [0], participation=1.0, seed=1, state=worker.tuned.state())
    down = server.open_round()[0]
    up = device.answer(down)
    assert sum(one.numel() for _, one in worker.tuned.named_weights()) == NUMBERS[target]
    for payload in (up, down):
        assert (
            4 * NUMBERS[target] < len(payload) < 4 * NUMBERS[target] + 200 * len(server.state.tensors) + 200
        )
    before = server.state.tensors
    server.close_round({0: up})
    assert any(not one.equal(before[name]) for name, one in server.state.tensors.items())


def test_the_order_of_the_reductions_is_the_published_one() -> None:
    assert NUMBERS["full"] > NUMBERS["linear"] > NUMBERS["lora"] > NUMBERS["bitfit"]
    assert NUMBERS["full"] > NUMBERS["adapter"] > NUMBERS["bitfit"]


@pytest.mark.parametrize("target", ["adapter", "prefix"])
def test_what_becomes_no_file_is_refused_before_anything_is_done(target: str, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"method": {"name": "fedpetuning", "target": target}})
    with pytest.raises(ConfigError, match=f"a trained {target} cannot be merged"):
        pipeline.run(recipe, tmp_path / "out", command="test")
    assert not (tmp_path / "out").exists()
