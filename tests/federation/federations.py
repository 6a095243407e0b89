"""A toy federation: four devices whose records all have the same answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune.core.events import Event
from edgetune.core.ledger import Ledger
from edgetune.core.tuned import Tuned
from edgetune.data.encode import Example, batches
from edgetune.federation.device import Device
from edgetune.federation.federate import federate
from edgetune.federation.plan import Plan
from edgetune.federation.server import Server
from edgetune.federation.single import tune
from edgetune.federation.start import Start
from edgetune.federation.state import Checkpoint
from edgetune.federation.worker import Worker
from edgetune.measure.evaluate import held_out_loss
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.tune.targets import INITIALISERS

SEED = 5
STEPS: dict[str, Any] = {"local_steps": 4, "batch_size": 4}
METHODS: dict[str, TuningMethod] = {
    "fedkseed": with_options(
        tuning_method("fedkseed"), {"pool": 64, "learning_rate": 1e-3, "eps": 1e-3, **STEPS}
    ),
    "signs": with_options(
        tuning_method("fedkseed"),
        {"pool": 64, "directions": "rademacher", "learning_rate": 1e-3, "eps": 1e-3, **STEPS},
    ),
    "averaged": with_options(
        tuning_method("fedkseed"),
        {"pool": 64, "learning_rate": 1e-3, "eps": 1e-3, "directions_per_step": 3, "micro_batch": 3, **STEPS},
    ),
    "adam": with_options(
        tuning_method("fedkseed"),
        {"pool": 64, "optimiser": "adam", "learning_rate": 1e-4, "eps": 1e-3, **STEPS},
    ),
    "heavy": with_options(
        tuning_method("mezo"), {"optimiser": "momentum", "history": 6, "learning_rate": 2e-4, **STEPS}
    ),
    "mezo": with_options(tuning_method("mezo"), {"learning_rate": 1e-3, **STEPS}),
    "decaying": with_options(
        tuning_method("fedkseed"),
        {"pool": 64, "learning_rate": 1e-3, "eps": 1e-3, **STEPS}
        | {"schedule": "cosine", "schedule_steps": 16, "warmup": 3},
    ),
    "scored": with_options(
        tuning_method("mezo_lora"),
        {"objective": "token_f1", "answer_tokens": 3, "learning_rate": 1e-1, "eps": 0.3, **STEPS},
    ),
    "scaled": with_options(
        tuning_method("fedkseed"),
        {"pool": 64, "learning_rate": 1e-3, "eps": 1e-3, "layer_scale": "parameter_norm", **STEPS},
    ),
    "mezo_lora": with_options(tuning_method("mezo_lora"), {"rank": 2, "learning_rate": 1e-2, **STEPS}),
    "mezo_prefix": with_options(tuning_method("mezo_prefix"), {"learning_rate": 1e-2, **STEPS}),
    "fwdllm": with_options(
        tuning_method("fwdllm"),
        {"rank": 2, "learning_rate": 1.0, "variance_threshold": 0.05, "directions_per_step": 2, **STEPS},
    ),
    "discriminative": with_options(
        tuning_method("fwdllm"),
        {"rank": 2, "learning_rate": 1.0, "variance_threshold": 1.0, "directions_per_step": 2, **STEPS}
        | {"draw": "discriminative", "candidates": 4},
    ),
    "dpzero": with_options(
        tuning_method("dpzero"),
        {"learning_rate": 1e-3, "clip": 5.0, "epsilon": 0, "noise_multiplier": 0.1, **STEPS},
    ),
    "dp_aggzo": with_options(
        tuning_method("dp_aggzo"),
        {"learning_rate": 4e-3, "clip": 9.0, "epsilon": 0, "noise_multiplier": 0.1, **STEPS}
        | {"directions_per_step": 4, "micro_batch": 3},
    ),
    "hidden_devices": with_options(
        tuning_method("dpzero"),
        {"estimate": "two_point", "sampling": "shuffled", "aggregate": "private_mean", "learning_rate": 1e-3}
        | {"clip": 1e-2, "epsilon": 0, "noise_multiplier": 0.1, **STEPS},
    ),
    "decomfl": with_options(
        tuning_method("decomfl"), {"learning_rate": 1e-3, "directions_per_step": 2, **STEPS}
    ),
    "decomfl_pool": with_options(
        tuning_method("decomfl"), {"learning_rate": 1e-3, "draw": "pool", "pool": 32, **STEPS}
    ),
    "fzoo": with_options(tuning_method("fzoo"), {"learning_rate": 1e-2, "directions_per_step": 3, **STEPS}),
    "grzo": with_options(tuning_method("grzo"), {"learning_rate": 1e-2, "directions_per_step": 3, **STEPS}),
    "tiled": with_options(
        tuning_method("fedkseed"),
        {"directions": "rank_one_pool", "pool": 64, "learning_rate": 1e-3, "eps": 1e-3, **STEPS},
    ),
    "lozo": with_options(tuning_method("lozo"), {"learning_rate": 1e-3, "interval": 3, **STEPS}),
    "subzero": with_options(
        tuning_method("subzero"),
        {"learning_rate": 1e-3, "directions_per_step": 3, "interval": 3, **STEPS},
    ),
    "linear_pool": with_options(
        tuning_method("fedkseed"),
        {"target": "linear", "directions": "rank_one_pool", "pool": 64, "learning_rate": 1e-3, "eps": 1e-3}
        | STEPS,
    ),
    "fedskip": with_options(tuning_method("fedskip"), {"pool": 64, "learning_rate": 3e-2, **STEPS}),
    "fedskip_hadamard": with_options(
        tuning_method("fedskip"), {"pool": 64, "directions": "hadamard", "learning_rate": 3e-2, **STEPS}
    ),
    "fedsubspace": with_options(tuning_method("fedsubspace"), {"pool": 64, "learning_rate": 3e-2, **STEPS}),
    "fedsubspace_lora": with_options(
        tuning_method("fedsubspace"),
        {"pool": 64, "target": "lora", "directions": "hadamard", "learning_rate": 3e-2} | STEPS,
    ),
    "skipgrad": with_options(tuning_method("skipgrad"), {"learning_rate": 0.3, "micro_batch": 0, **STEPS}),
    "one_byte": with_options(tuning_method("one_byte"), {"learning_rate": 2e-3, **STEPS}),
    "one_byte_pairs": with_options(
        tuning_method("one_byte"), {"learning_rate": 2e-3, "directions_per_step": 2, **STEPS}
    ),
    "fedkseed_pro": with_options(
        tuning_method("fedkseed_pro"),
        {"pool": 64, "learning_rate": 1e-3, "eps": 1e-3, "corrected": True, **STEPS},
    ),
    "feedsign": with_options(tuning_method("feedsign"), {"learning_rate": 1e-3, **STEPS}),
    "lora": with_options(tuning_method("lora"), {"learning_rate": 5e-3, **STEPS}),
    **{
        rule: with_options(
            tuning_method("fedit"),
            {"aggregate": rule, "rank": 2, "learning_rate": 5e-3, "micro_batch": 0, **STEPS},
        )
        for rule in ("ffa", "flora", "fedex")
    },
    **{
        name: with_options(
            tuning_method("lora"), {"initialiser": name, "rank": 2, "learning_rate": 5e-3, **STEPS}
        )
        for name in INITIALISERS
        if name != "default"
    },
    **{
        f"pissa_{rule}": with_options(
            tuning_method("fedit"),
            {"initialiser": "pissa", "aggregate": rule, "rank": 2, "learning_rate": 5e-3, "micro_batch": 0}
            | STEPS,
        )
        for rule in ("flora", "fedex")
    },
    "pissa_adam": with_options(
        tuning_method("lora"),
        {
            "initialiser": "pissa",
            "rank": 2,
            "server": "adam",
            "learning_rate": 5e-3,
            "proximal": 0.1,
            **STEPS,
        },
    ),
    **{
        target: with_options(
            tuning_method("fedpetuning"),
            {"target": target, "learning_rate": 5e-3, "micro_batch": 0, **STEPS},
        )
        for target in ("full", "linear", "adapter", "prefix", "bitfit")
    },
    "fedselft": with_options(
        tuning_method("fedselft"),
        {
            "learning_rate": 0.3,
            "micro_batch": 0,
            "layer_budget": 2,
            "budget_spread": 1,
            "consistency": 0.1,
            **STEPS,
        },
    ),
    "fedpeptao": with_options(
        tuning_method("fedpeptao"),
        {"learning_rate": 1e-2, "prefix_tokens": 2, "micro_batch": 0, "spectrum_steps": 4, **STEPS},
    ),
    **{
        f"server_{kind}": with_options(
            tuning_method("lora"),
            {"server": kind, "learning_rate": 5e-3, "proximal": 0.1, **STEPS},
        )
        for kind in ("momentum", "adam")
    },
    "pool_adam": with_options(
        tuning_method("fedkseed"),
        {"pool": 64, "learning_rate": 1e-3, "eps": 1e-3, **STEPS}
        | {"server": "adam", "server_rate": 1e-4, "server_eps": 1e-6, "proximal": 0.1},
    ),
}


def answers(server: Server, devices: Mapping[int, Device], down: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return what devices send in answer to a round's messages, after the exchange before it where there is one."""
    before = {id: devices[id].survey(payload) for id, payload in down.items()} if server.surveys else {}
    chosen = server.choose(before)
    if chosen is None:
        return {id: devices[id].answer(payload) for id, payload in down.items()}
    return {id: devices[id].answer(down[id], choice=choice) for id, choice in chosen.items()}


def examples(device: int, count: int = 6) -> list[Example]:
    """Return prompts of letters that all continue with tokens 7 8 0."""
    return [Example((10 + device, 20 + index, 30, 7, 8, 0), 3) for index in range(count)]


def evaluate(tuned: Tuned) -> float:
    return held_out_loss(tuned.model, batches(examples(9), 8, 0)).loss


@dataclass
class Toy:
    """One process: a model, its devices, and the folder of the ledger."""

    folder: Path
    method: TuningMethod
    ledger: Path
    fingerprint: str = "f"
    options: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        sample = list(batches(examples(8, 8), 4, 0))
        start = Start(sample, self.ledger.parent, self.fingerprint)
        self.worker = Worker(load_backbone(self.folder, **self.options), self.method, SEED, start=start)
        self.devices = {id: Device(id, examples(id, 4 + id), self.worker, pad_id=0) for id in range(4)}

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.ledger, self.worker, self.fingerprint)

    def federate(self, rounds: int, participation: float = 0.5) -> Ledger:
        plan = Plan(rounds, participation, SEED)
        return federate(
            self.worker, self.devices, plan, self.checkpoint(), evaluate, listener=self.events.append
        )

    def tune(self, rounds: int) -> Ledger:
        plan = Plan(rounds, 1.0, SEED)
        return tune(
            self.worker,
            examples(0, 4),
            plan,
            self.checkpoint(),
            evaluate,
            pad_id=0,
            listener=self.events.append,
        )


MakeToy = Callable[..., Toy]
