"""Event logs as a run writes them, built from the real event classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from edgetune.core.events import (
    Event,
    LayerCompressed,
    RoundFinished,
    RunFinished,
    RunStarted,
    Sample,
    StageFinished,
    Traffic,
)
from edgetune.core.export_events import Verified
from edgetune.core.host_events import DeviceSeen, HostsRound

Write = Callable[[Iterable[Event]], Path]


def started(seed: int = 0) -> RunStarted:
    return RunStarted(
        command=f"edgetune run quick --out runs/quick --seed {seed}",
        config={
            "model": {"name": "embedded/stories", "dtype": "float32"},
            "data": {"records": 1200, "held_out": 100, "split": {"kind": "dirichlet", "alpha": 0.5}},
            "method": {"name": "fedkseed", "pool": 4096, "learning_rate": 3e-4, "local_steps": 200},
            "compression": {"method": "optq", "grid": "Q4_0", "damping": 0.01},
            "rounds": 12,
        },
        method="fedkseed",
        base_digest="blake2s:9f1c2ab04e77d1c0aa51b6e3",
        seed=seed,
        versions={"edgetune": "0.1.0", "python": "3.11.2", "torch": "2.7.1+cpu"},
        weights=551_936,
    )


def round_(number: int, loss: float | None = None, digest: str = "") -> RoundFinished:
    decay = math.exp(-number / 4)
    return RoundFinished(
        round=number,
        devices=[1, 4, 7, 9],
        train_loss=1.32 + 2.1 * decay + 0.05 * math.sin(3 * number),
        loss=1.25 + 2.0 * decay if loss is None else loss,
        payload_up_bytes=[1204, 1198, 1210, 1201],
        payload_down_bytes=[16_412] * 4,
        dropped=0,
        digest=digest or f"blake2s:round{number}",
        seconds=6.8,
        peak_memory_bytes=61_000_000,
        rouge_l=70.0 - 29.0 * decay if number % 3 == 0 else None,
    )


def stage(
    name: str, loss: float, rouge_l: float, size: int, memory: int, style: float | None
) -> StageFinished:
    return StageFinished(
        name=name,
        loss=loss,
        perplexity=math.exp(loss),
        rouge_l=rouge_l,
        size_bytes=size,
        peak_memory_bytes=memory,
        seconds=9.4,
        base_style_loss=style,
        records=100,
    )


def far(row: StageFinished, kl: float) -> StageFinished:
    """A row whose predictions were compared with those before compression."""
    return replace(row, kl_response=kl / 2, kl=kl, kl_rare=40 * kl, top_1=1 - 10 * kl)


def traffic() -> Traffic:
    return Traffic(
        rounds=12,
        devices_per_round=4,
        payload_up_bytes=1210,
        payload_down_bytes=16_412,
        total_bytes=845_520,
        alternatives={
            "FedAvg, full weights (fp16)": {"payload_up_bytes": 2_207_900, "payload_down_bytes": 2_207_900},
            "FedAvg, LoRA r=8 (fp16)": {"payload_up_bytes": 131_600, "payload_down_bytes": 131_600},
        },
    )


def layers() -> list[LayerCompressed]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return [
        LayerCompressed(
            name=f"model.layers.{block}.{name}",
            grid="Q4_0",
            error=0.0015 * (1 + 0.4 * math.sin(7 * block + index)),
            rounding_error=0.0041 * (1 + 0.3 * math.cos(5 * block + index)),
            damping=0.01,
            fallback=False,
        )
        for block in range(4)
        for index, name in enumerate(names)
    ]


def samples() -> list[Sample]:
    answers = {
        "base": "was a little girl named Lily. She loved to play outside in the park with her friends.",
        "tuned": "In spring, because the snow had melted.",
        "compressed": "In spring, because the snow had melted.",
        "llama.cpp": "In spring, because the snow had melted.",
    }
    expected = "In spring, when the snow had melted."
    return [
        Sample(
            stage=name,
            prompt=f"Question {number}: when did the bear wake up, and why?\nAnswer:",
            expected=expected,
            answer=answer,
        )
        for number in range(1, 8)
        for name, answer in answers.items()
    ]


def full_run() -> list[Event]:
    return [
        started(),
        stage("base", 3.41, 41.2, 2_207_744, 48_000_000, 1.71),
        *(round_(number) for number in range(1, 13)),
        stage("tuned", 1.347, 70.3, 16_440, 62_000_000, 1.93),
        far(stage("rounded", 1.52, 64.1, 1_098_240, 55_000_000, 2.05), 8e-4),
        *layers(),
        far(stage("compressed", 1.371, 69.8, 1_098_240, 71_000_000, 1.95), 4.4e-4),
        Verified("model.gguf", 3.1e-3, 2.2e-4, 3.939, 3.941, 500),
        stage("llama.cpp", 1.3712, 69.8, 1_098_240, 21_000_000, None),
        *samples(),
        traffic(),
        RunFinished(seconds=131.0),
    ]


def hosts_round(number: int, *, gone: str | None = None, late: bool = False) -> HostsRound:
    """What the network did in `round_(number)`; device 4 did not answer if there is a reason."""
    heard = [1, 7, 9] if gone else [1, 4, 7, 9]
    return HostsRound(
        round=number,
        online=len(heard) + 1,
        registered=6,
        accepted=heard,
        unanswered={"4": gone} if gone else {},
        late=[4] if late else [],
        transport_up_bytes={str(device): 5000 + device for device in range(6, 10)} | {"1": 4000},
        transport_down_bytes={str(device): 20_000 for device in (1, 4, 7, 9)},
        waited_seconds=2.5,
    )


def hosts_run() -> list[Event]:
    """Three rounds across hosts: device 4 was offline in the second, and its reply came in the third."""
    return [
        started(),
        DeviceSeen(1, "online"),
        DeviceSeen(4, "online"),
        DeviceSeen(None, "refused", "no such key"),
        hosts_round(1),
        round_(1),
        DeviceSeen(4, "offline"),
        hosts_round(2, gone="offline"),
        replace(round_(2), payload_up_bytes=[1204, 1210, 1201]),
        DeviceSeen(4, "online"),
        hosts_round(3, late=True),
        round_(3),
        RunFinished(seconds=30.0),
    ]
