"""A device of edgetune that says when a message came, when its first forward pass began, and how many requests it made.

    python hosts_timed.py python -m edgetune device ...

For every part of a round one line: `timed {"arrival": seconds, "pull": seconds, "requests": count}`. `pull` is how long
the look took that found the message, `arrival` the time from its end to the first module that computes.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    """Put the clocks in place, and run edgetune's own main."""
    from edgetune.hosts.flower.switches import switch_off

    switch_off()
    import httpx
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    from edgetune.hosts.flower.supernode import SuperNode
    from edgetune.hosts.resident import Resident
    from edgetune.models import backbone

    found: dict[str, Any] = {"requests": 0}
    came, looked = [0.0], [0.0]

    def sending(client: Any, *rest: Any, inner: Any = httpx.Client.send, **named: Any) -> Any:
        found["requests"] += 1
        return inner(client, *rest, **named)

    def receiving(node: Any, inner: Any = SuperNode.receive) -> Any:
        begin = time.perf_counter()
        message = inner(node)
        if message is not None:
            came[0] = time.perf_counter()
            looked[0] = came[0] - begin
            found.pop("arrival", None)
        return message

    def forward(module: torch.nn.Module, arguments: Any) -> None:
        found.setdefault("arrival", time.perf_counter() - came[0])

    def replying(node: Any, *rest: Any, inner: Any = SuperNode.reply) -> None:
        inner(node, *rest)
        if "arrival" in found:
            print("timed " + json.dumps({**found, "pull": looked[0]}), flush=True)
        found["requests"] = 0

    def loading(*rest: Any, inner: Any = backbone.load_backbone, **named: Any) -> Any:
        begin = time.perf_counter()
        made = inner(*rest, **named)
        print(f"loaded {json.dumps(time.perf_counter() - begin)}", flush=True)
        return made

    httpx.Client.send = sending  # type: ignore[method-assign]
    SuperNode.receive = receiving  # type: ignore[method-assign]
    SuperNode.reply = replying  # type: ignore[method-assign]
    register_module_forward_pre_hook(forward)
    sys.modules[Resident.__module__].load_backbone = loading  # type: ignore[attr-defined]
    sys.argv[:] = ["edgetune", *sys.argv[4:]]
    from edgetune.cli import main as edgetune

    edgetune()


if __name__ == "__main__":
    main()
