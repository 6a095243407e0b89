"""Run fuzz targets: first every case in the corpus, then as many new ones as asked for.

    python -m fuzz [TARGET ...] [--count N] [--seed S]

Every case is a function of the seed and its number. A case whose outcome is neither a right result nor a typed error is
written to the corpus and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

from fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
SLOWEST = 60
"""Seconds after which a case hangs."""


def targets() -> dict[str, type[Target]]:
    """Return every target by name; imported here, so that `--help` waits for no library."""
    from fuzz.frames import Frames
    from fuzz.gguf_files import Gguf
    from fuzz.ledgers import Ledgers
    from fuzz.manifests import Manifests
    from fuzz.recipes import Recipes

    return {one.name: one for one in (Frames, Gguf, Ledgers, Manifests, Recipes)}


COUNTS = {"frames": 4000, "gguf": 60, "ledgers": 4000, "manifests": 1500, "recipes": 600}
"""Cases of a short run, some seconds each."""


def run(target: Target, count: int, seed: int) -> bool:
    """Run a target's corpus and new cases; say what came of them.

    Returns:
        Whether every case ended well.
    """
    outcomes, started, good = Counter[str](), time.monotonic(), True
    folder = CORPUS / target.name
    kept = [path.read_bytes() for path in sorted(folder.glob("*.bin"))]
    for number in range(-len(kept), count):
        case = kept[number] if number < 0 else target.case(Random(f"{seed} {target.name} {number}"))
        signal.alarm(SLOWEST)
        try:
            outcomes[target.check(case)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            good = False
            _keep(folder, case, number, error)
        finally:
            signal.alarm(0)
    spent = time.monotonic() - started
    said = ", ".join(f"{name} {times:,}" for name, times in outcomes.most_common())
    print(f"{target.name}: {len(kept)} kept and {count:,} new cases in {spent:.0f} s: {said}", flush=True)
    return good


def _keep(folder: Path, case: bytes, number: int, error: BaseException) -> None:
    path = folder / f"{hashlib.sha256(case).hexdigest()[:16]}.bin"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case)
    print(f"case {number} is kept as {path}:", file=sys.stderr)
    traceback.print_exception(error)


def _hang(number: int, frame: object) -> None:
    raise TimeoutError(f"a case took more than {SLOWEST} s")


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("target", nargs="*", help=f"one of {', '.join(COUNTS)}; all if none is named")
    parser.add_argument(
        "--count", type=int, help="new cases of each target; a few seconds' worth if not given"
    )
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    known = targets()
    if wrong := sorted(set(asked.target) - set(known)):
        parser.error(f"no target {wrong[0]!r}; there are: {', '.join(known)}")
    signal.signal(signal.SIGALRM, _hang)
    good = [
        run(known[name](), COUNTS[name] if asked.count is None else asked.count, asked.seed)
        for name in asked.target or known
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
