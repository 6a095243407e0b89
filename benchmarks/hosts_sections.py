"""What `benchmarks/hosts.py` measures of time: first forward, rounds a second, a long run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hosts_fleet import Federation, median, timed

FRESH = """
import sys, time
begun = time.perf_counter()
import torch, transformers
from edgetune.models.backbone import load_backbone
imported = time.perf_counter()
backbone = load_backbone(sys.argv[1])
loaded = time.perf_counter()
with torch.no_grad():
    backbone.model(torch.ones(1, 4, dtype=torch.long))
print(imported - begun, loaded - imported, time.perf_counter() - loaded)
"""
"""What a process does that is started for a message: Flower's own SuperNode starts one for each."""


def random_model(folder: Path, hidden: int = 768, layers: int = 13) -> int:
    """Save a Llama with random weights and the tokenizer of the embedded model; return how many weights it has."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from edgetune.models.embedded import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def first_forward(rounds: int = 6) -> dict[str, Any]:
    """Measure the time from a message to the first forward pass: resident, and in a process started for it."""
    with tempfile.TemporaryDirectory() as name:
        weights = random_model(Path(name))
        fresh = list[list[float]]()
        for _ in range(3):  # the first one reads the files, the later ones find them in the page cache
            whole = timed(lambda: fresh.append(_fresh(name)))
            fresh[-1].append(whole)
        with Federation(1, rounds, settings={"model.source": name}) as federation:
            (device,) = federation.join(timed=True)
            federation.ended()
            said = [json.loads(one) for one in re.findall(r"^timed (.*)$", device.said, re.M)]
            loads = [float(one) for one in re.findall(r"^loaded (.*)$", device.said, re.M)]
    assert len(said) == rounds, "a message without a forward pass"
    assert len(loads) == 1, f"the base was loaded {len(loads)} times"
    middle = sorted(fresh, key=lambda one: one[-1])[len(fresh) // 2]
    return {
        "weights": weights,
        "load": loads[0],
        "arrival": [one["arrival"] for one in said],
        "pull": [one["pull"] for one in said],
        "fresh": dict(zip(("imports", "load", "forward", "whole"), middle, strict=True)),
    }


def _fresh(folder: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", FRESH, folder], check=True, capture_output=True, text=True)
    return [float(one) for one in done.stdout.split()]


def round_latency(rounds: int = 100) -> list[dict[str, Any]]:
    """Measure rounds a second where a round is next to nothing."""
    found = list[dict[str, Any]]()
    for devices in (1, 2):
        with Federation(devices, rounds) as federation:
            federation.join(devices)
            federation.reached(10)
            begin = [one.footprint().cpu for one in (federation.server, federation.running[0])]
            first = len(federation.events("round"))
            federation.reached(rounds - 10)
            spent = [one.footprint().cpu for one in (federation.server, federation.running[0])]
            last = len(federation.events("round"))
            federation.ended()
            done, hosts = federation.events("round"), federation.events("hosts_round")
        seconds = [one["seconds"] for one in done[5:-1]]
        found.append(
            {
                "devices": devices,
                "a_second": (len(done) - 7) / (done[-2]["time"] - done[5]["time"]),
                "median": median(seconds),
                "longest": max(seconds),
                "waited": median([one["waited_seconds"] for one in hosts[5:-1]]),
                "server_cpu": (spent[0] - begin[0]) / (last - first),
                "device_cpu": (spent[1] - begin[1]) / (last - first),
            }
        )
    return found


def endurance(rounds: int = 1100, every: int = 50, within: float = 420) -> dict[str, Any]:
    """Measure memory and open files over a long run, of fewer rounds if they take longer than so many seconds."""
    rows = list[dict[str, Any]]()
    with Federation(2, rounds) as federation:
        federation.join(2)
        until = time.monotonic() + within
        for round in range(every, rounds, every):
            try:
                federation.reached(round, until - time.monotonic())
            except AssertionError:
                break
            server, device = federation.server.footprint(), federation.running[0].footprint()
            sizes = {one.name: one.stat().st_size for one in federation.out.iterdir() if one.is_file()}
            rows.append(
                {
                    "round": len(federation.events("round")),
                    "server_mb": server.resident / 1e6, "server_files": server.files, "server_cpu": server.cpu,
                    "device_mb": device.resident / 1e6, "device_files": device.files, "device_cpu": device.cpu,
                    "files": sizes,
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
        done = federation.events("round")
    return {
        "rounds": len(done),
        "seconds": done[-1]["time"] - done[0]["time"],
        "rows": rows,
        **slopes(rows),
    }


def slopes(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the slopes after round 200, and those of the second half."""
    half = rows[-1]["round"] // 2
    return {
        "server_slope": slope(rows, "server_mb", 200),
        "server_half": slope(rows, "server_mb", half),
        "device_slope": slope(rows, "device_mb", 200),
        "device_half": slope(rows, "device_mb", half),
    }


def slope(rows: list[dict[str, Any]], name: str, after: int) -> tuple[float, float]:
    """Return the least-squares slope in kB a round, and its standard error, from a round on."""
    points = np.array([(one["round"], 1000 * one[name]) for one in rows if one["round"] >= after])
    x, y = points[:, 0] - points[:, 0].mean(), points[:, 1] - points[:, 1].mean()
    found = float(x @ y / (x @ x))
    rest = y - found * x
    return found, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))
