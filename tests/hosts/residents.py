"""The server's side of a run, for tests of a device's process without a network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune.federation.pipes import Message
from edgetune.federation.residency import digest_of
from edgetune.federation.server import Server
from edgetune.federation.worker import Worker
from edgetune.hosts.kinds import ANSWER, OPEN
from edgetune.hosts.limits import Limits
from edgetune.hosts.resident import Own, Resident
from edgetune.models.backbone import load_backbone
from edgetune.recipe.open_settings import written_out
from edgetune.recipe.prepare import recipe_method
from edgetune.recipe.recipe import load_recipe
from edgetune.recipe.residency import RESIDENCIES

TINY = {"method__name": "fedkseed", "method__local_steps": 2, "method__batch_size": 2, "data__max_tokens": 40}


@dataclass
class Run:
    """The server's side of a run, and what it would send."""

    folder: Path
    told: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = load_recipe(None, [], **{**TINY, **self.settings})
        residency, backbone = RESIDENCIES[recipe.model.residency], load_backbone(recipe.model.source)
        self.head: dict[str, Any] = {
            "version": "9", "recipe": written_out(recipe).model_dump(mode="json"),
            "method": recipe_method(recipe).digest,
            "base": digest_of(backbone, residency.grid), "prompt": backbone.prompt_digest,
        }  # fmt: skip
        worker = Worker(backbone, recipe_method(recipe), recipe.seed, residency)
        self.server = Server(
            worker.method, worker.identity, [0], participation=1, seed=recipe.seed, state=worker.tuned.state(),
            minimum=1, round=0, layers=worker.layers, initial=worker.initial,
        )  # fmt: skip
        self.data = self.folder / "local.jsonl"
        rows = [{"question": f"what is {n}?", "answer": f"{n} it is"} for n in range(6)]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def opening(self, **more: Any) -> Message:
        recipe = more.get("recipe")
        if isinstance(recipe, dict):  # else another method's digest is what is wrong first
            sections = {
                name: {**self.head["recipe"].get(name, {}), **one}
                for name, one in recipe.items()
                if isinstance(one, dict)
            }
            more = {**more, "recipe": {**self.head["recipe"], **recipe, **sections}}
        return Message(OPEN, {**self.head, **more})

    def resident(self, **more: Any) -> Resident:
        own = {"columns": None, "model": None, "method": None, "scratch": self.folder / "scratch", **more}
        return Resident(Own(self.data, limits=own.pop("limits", Limits()), **own), tell=self.told.append)

    def ask(self, held: int | None = None) -> Message:
        payload = self.server.open_round({} if held is None else {0: held})[0]
        return asked(payload, self.server.round)

    def close(self, reply: bytes) -> None:
        assert self.server.close_round({0: reply}).refused == {}


def asked(payload: bytes, turn: int = 0, **more: Any) -> Message:
    head = {
        "device": 0,
        "turn": turn,
        "survey": False,
        "choice": None,
        "start": "",
        "recalled": 0,
        "round": turn + 1,
    }
    return Message(ANSWER, {**head, **more}, payload)
