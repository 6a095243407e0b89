"""Initial values of adapters: their distribution, their definition, and a generator that nobody shares."""

from __future__ import annotations

import hashlib
import math
import struct
import threading
from pathlib import Path
from statistics import NormalDist
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from edgetune.core.exclusive import LIBRARIES
from edgetune.models.backbone import load_backbone
from edgetune.tune.initial import normal, uniform
from edgetune.tune.placement import place_lora, place_prefix, trainable


def words(seed: int, name: str, count: int) -> tuple[int, ...]:
    text = b"edgetune adapter" + struct.pack("<I", seed) + name.encode()
    return struct.unpack(f"<{count}I", hashlib.shake_128(text).digest(4 * count))


def test_values_follow_from_seed_and_name_by_the_written_formula() -> None:
    drawn = [(word + 0.5) / 2**32 for word in words(7, "läyer.w", 6)]
    even = uniform(7, "läyer.w", (2, 3), 0.25)
    assert even.dtype == torch.float32
    assert even.view(-1).tolist() == pytest.approx([0.25 * (2 * u - 1) for u in drawn], rel=1e-6)
    bell = normal(7, "läyer.w", (6,), 2.0)
    assert bell.tolist() == pytest.approx([2 * NormalDist().inv_cdf(u) for u in drawn], rel=1e-6)
    assert not torch.equal(uniform(8, "läyer.w", (2, 3), 0.25), even)
    assert not torch.equal(uniform(7, "layer.w", (2, 3), 0.25), even)
    assert not normal(7, "w", (5,), 0.0).any()


def test_low_rank_factors_start_as_pefts_own_do(tiny_model: Any) -> None:
    placed, (many, few) = place_lora(tiny_model(hidden=64), rank=8, alpha=16, seed=3), (0.0, 0)
    theirs = nn.Linear(64, 8, bias=False).weight  # what peft's initialisation of A comes to
    nn.init.kaiming_uniform_(theirs, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    assert float(theirs.detach().abs().max()) < 1 / math.sqrt(64)
    for name, weight in trainable(placed).items():
        if ".lora_B." in name:
            assert not weight.any()
            continue
        bound = 1 / math.sqrt(weight.shape[1])
        assert float(weight.detach().abs().max()) < bound
        many, few = many + float((weight.detach() / bound).double().pow(2).sum()), few + weight.numel()
        low, high = torch.quantile(weight.detach() / bound, torch.tensor([0.25, 0.75]))
        assert (float(low), float(high)) == pytest.approx((-0.5, 0.5), abs=0.15)
    assert few > 5000
    assert many / few == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_placing_leaves_the_generator_alone_and_does_not_depend_on_it(family: str, tiny_model: Any) -> None:
    found = []
    for seed in (1, 2):
        models = tiny_model(family), tiny_model(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            lora = place_lora(models[0], rank=2, alpha=4, seed=5)
            prefix = place_prefix(models[1], tokens=3, scale=0.5, seed=5)
            assert torch.equal(torch.get_rng_state(), before)
        found.append({**trainable(lora), **trainable(prefix)})
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
    (start,) = [weight for name, weight in found[0].items() if name.startswith("prompt_encoder")]
    assert float(start.detach().std()) == pytest.approx(0.5, rel=0.2)


def test_one_thread_at_a_time_builds_models(
    save_tiny: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = list[bool]()

    def look() -> None:
        free = LIBRARIES.acquire(blocking=False)
        others.append(free)
        if free:
            LIBRARIES.release()

    def looking(original: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            return original(*given, **named)

        return call

    folder: Path = save_tiny()
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", looking(load))
    monkeypatch.setattr(peft, "get_peft_model", looking(peft.get_peft_model))
    load_backbone(folder)
    place_lora(tiny_model(), rank=2, alpha=4, seed=0)
    place_prefix(tiny_model(), tokens=2, scale=0.1, seed=0)
    assert others == [False, False, False]
    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert others[3:] == [True, True]
