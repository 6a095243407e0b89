"""What `benchmarks/hosts.py` measures of many devices: their memory, what they cost the server, and where it goes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from hosts_fleet import Federation, median

BATCH = 10
"""Devices that are started at a time."""
STAGES = """
import json, re, sys
from pathlib import Path

def resident():
    found = dict(re.findall(r"^(\\w+): +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M))
    return [int(found["Rss"]) / 1e3 * 1.024, int(found["Anonymous"]) / 1e3 * 1.024]

stages = [("the interpreter", "pass")] + json.loads(sys.argv[1])
for name, code in stages:
    exec(code, globals())
    print(json.dumps([name, *resident()]))
"""
IMPORTS = [
    ("numpy", "import numpy"),
    ("torch", "import torch"),
    ("transformers, its Llama", "import transformers.models.llama.modeling_llama"),
    ("edgetune's device", "import edgetune.hosts.device"),
    ("its link, Flower", "from edgetune.hosts.flower.switches import switch_off; switch_off(); "
     "import edgetune.hosts.flower.supernode"),
    ("the embedded base", "from edgetune.models.backbone import load_backbone; backbone = load_backbone('embedded')"),
    ("a forward pass", "import torch\nwith torch.no_grad(): backbone.model(torch.ones(1, 64, dtype=torch.long))"),
]  # fmt: skip


def many(counts: tuple[int, ...] = (2, 10, 50), rounds: int = 12) -> list[dict[str, Any]]:
    """Measure federations of so many devices on this machine, all of them asked in every round."""
    return [fleet(count, rounds) for count in counts]


def fleet(count: int, rounds: int) -> dict[str, Any]:
    """Measure a federation of so many devices."""
    with Federation(count, rounds) as federation:
        begun = time.monotonic()
        while len(federation.running) < count:
            federation.join(min(BATCH, count - len(federation.running)))
        federation.reached(2)
        met = time.monotonic() - begun
        before, first = federation.server.footprint(), len(federation.events("round"))
        federation.reached(rounds - 2)
        server, last = federation.server.footprint(), len(federation.events("round"))
        devices = [one.footprint() for one in federation.running]
        federation.ended()
        done = federation.events("round")
        assert all(len(one["payload_up_bytes"]) == count for one in done), "a device did not answer"
    return {
        "devices": count,
        "start_seconds": met,
        "round_seconds": median([one["seconds"] for one in done[2:-1]]),
        "private_mb": median([one.private / 1e6 for one in devices]),
        "proportional_mb": median([one.proportional / 1e6 for one in devices]),
        "resident_mb": median([one.resident / 1e6 for one in devices]),
        "device_files": max(one.files for one in devices),
        "server_mb": server.private / 1e6,
        "server_files": server.files,
        "server_cpu": (server.cpu - before.cpu) / (last - first),
    }


def imports() -> list[tuple[str, float, float]]:
    """Measure what is resident in a fresh process after each thing that a device needs, MB: in all, and anonymous."""
    command = [sys.executable, "-c", STAGES, json.dumps(IMPORTS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
