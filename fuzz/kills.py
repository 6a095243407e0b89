"""Kill runs at random moments and let them go on: to the ledger of an undisturbed run, with nothing else left.

    python -m fuzz.kills [--kills N] [--terms N] [--seed S]

Every tuning method and optimiser is run on the embedded model in a process of its own, which gets SIGKILL or SIGTERM at
a moment drawn evenly over an undisturbed run's time, and is started again until it ends by itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from edgetune.core.files import PARTIAL
from edgetune.core.ledger import read_ledger

SMALL = {
    "data.records": 40, "data.held_out": 4, "data.calibration": 4, "data.max_tokens": 48,
    "evaluation.max_new_tokens": 4, "method.local_steps": 6, "federation.devices": 4,
    "federation.participation": 0.5, "federation.rounds": 6, "split.kind": "iid",
}  # fmt: skip
CASES: tuple[tuple[str, ...], ...] = (
    ("federate", "fedkseed"),
    ("federate", "fedkseed", "method.directions=rademacher", "method.pool=64"),
    ("federate", "fedkseed", "method.optimiser=adam", "method.pool=64"),
    ("federate", "mezo"),
    ("federate", "zo_sgd"),
    ("federate", "mezo_lora"),
    ("federate", "lora"),
    ("tune", "fedkseed", "method.optimiser=momentum", "method.pool=64"),
    ("tune", "fedkseed", "method.optimiser=adam", "method.pool=64"),
    ("tune", "fedkseed", "model.residency=streamed-q4_0"),
    ("tune", "mezo", "method.optimiser=momentum"),
    ("tune", "mezo", "method.optimiser=adam", "method.history=3"),
    ("tune", "mezo", "model.dtype=bfloat16", "model.accept_rounding=true", "method.learning_rate=1e-6"),
    ("tune", "zo_sgd"),
    ("tune", "mezo_lora", "method.optimiser=adam"),
    ("tune", "mezo_prefix", "method.optimiser=momentum"),
    ("tune", "lora"),
    ("tune", "lora", "method.optimiser=sgd"),
    ("run", ""),
)
"""Command, method and settings; `run` takes the packaged recipe through compression and llama.cpp."""
ENDED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a run gives that nobody stops: its ledger's digest, and how long it takes."""

    digest: str
    seconds: float


def command(case: tuple[str, ...], out: Path) -> list[str]:
    """Return the command line of a case."""
    verb, method, *settings = case
    said = [f"{key}={value}" for key, value in SMALL.items()] + settings
    words = [
        sys.executable,
        "-m",
        "edgetune",
        verb,
        *([method] if method else []),
        "--out",
        str(out),
        "--quiet",
    ]
    return words + [word for text in said for word in ("--set", text)]


def start(case: tuple[str, ...], out: Path) -> subprocess.Popen[bytes]:
    """Start a run; its output goes nowhere but its errors."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command(case, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def finish(case: tuple[str, ...], out: Path) -> str:
    """Let a run end by itself, and return its ledger's digest.

    Raises:
        AssertionError: if it does not end well, or leaves unfinished files.
    """
    with start(case, out) as run:
        _, error = run.communicate(timeout=600)
    if run.returncode:
        raise AssertionError(f"exit code {run.returncode}: {error.decode()[-500:]}")
    left = sorted(path.name for path in out.iterdir() if path.name.startswith(PARTIAL))
    if left:
        raise AssertionError(f"left behind: {', '.join(left)}")
    return read_ledger(out / "tuned.ledger").digest


def stop_once(case: tuple[str, ...], out: Path, number: signal.Signals, after: float) -> bool:
    """Start a run and send it a signal after some seconds; say whether it was stopped before it ended.

    Raises:
        AssertionError: if it ends otherwise than that signal ends a run.
    """
    with start(case, out) as run:
        try:
            run.wait(after)
        except subprocess.TimeoutExpired:
            run.send_signal(number)
        _, error = run.communicate(timeout=600)
    # A signal that comes before Python has started ends the process as the system does.
    if run.returncode not in (0, ENDED[number], -number):
        raise AssertionError(f"exit code {run.returncode} after {number.name}: {error.decode()[-500:]}")
    return run.returncode != 0


def undisturbed(case: tuple[str, ...], folder: Path) -> Undisturbed:
    """Run a case to its end."""
    began = time.monotonic()
    digest = finish(case, folder)
    return Undisturbed(digest, time.monotonic() - began)


def main() -> int:
    """Read the command line, stop runs, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="runs stopped by SIGKILL")
    parser.add_argument("--terms", type=int, default=50, help="runs stopped by SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = Random(asked.seed)
    wanted = [signal.SIGKILL] * asked.kills + [signal.SIGTERM] * asked.terms
    rng.shuffle(wanted)
    bad, missed, known = 0, 0, dict[tuple[str, ...], Undisturbed]()
    with tempfile.TemporaryDirectory() as folder:
        for turn, number in enumerate(wanted):
            case = CASES[turn % len(CASES)]
            if case not in known:
                known[case] = undisturbed(case, Path(folder) / f"undisturbed-{len(known)}")
            out, after = Path(folder) / str(turn), rng.uniform(0, known[case].seconds)
            try:
                missed += not stop_once(case, out, number, after)
                if rng.random() < 0.3:  # some runs are stopped twice
                    stop_once(case, out, number, rng.uniform(0, known[case].seconds))
                digest = finish(case, out)
                good = digest == known[case].digest
                said = "same digest" if good else f"digest {digest[:12]}, not {known[case].digest[:12]}"
            except AssertionError as error:
                good, said = False, str(error)
            bad += not good
            print(
                f"{turn + 1:>4} {number.name} after {after:5.1f} s, {' '.join(case):<60} {said}", flush=True
            )
    print(f"{len(wanted)} runs stopped, {missed} of them after their end; {bad} ended wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
