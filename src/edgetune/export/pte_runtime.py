"""ExecuTorch on the CPU, as far as it is needed to see what a written program predicts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from edgetune.core.errors import VerifyError

SCRIPT = Path(__file__).with_name("pte_child.py")
SECONDS = 1200
"""A program may take this long for all its calls; a device that needs longer is none for this model."""
SHOWN = 300

Call = tuple[Sequence[int], int]
"""Token ids, and the place of the first."""


class PteDecoder:
    """A program in ExecuTorch, in a process of its own: it dies of a damaged file, and this one does not.

    Args:
        file: as `pte_program.write_pte` makes it.
        threads: of the process.
    """

    def __init__(self, file: Path, *, threads: int = 1) -> None:
        self._file, self._threads = file, threads
        self.seconds: list[float] = []
        """How long each call of the last run took."""

    def run(self, calls: Sequence[Call]) -> list[torch.Tensor]:
        """Run some calls one after the other on one cache; a call at place 0 begins a text.

        Args:
            calls: at least one.

        Returns:
            Logits, float32 [tokens, vocabulary] each.

        Raises:
            VerifyError: if ExecuTorch refuses the file, or dies of it, or takes too long.
        """
        with tempfile.TemporaryDirectory() as name:
            given, found = Path(name) / "calls", Path(name) / "found"
            torch.save(
                [[torch.tensor([list(ids)]), torch.arange(first, first + len(ids))] for ids, first in calls],
                given,
            )
            try:
                done = subprocess.run(
                    [sys.executable, "-I", str(SCRIPT), str(self._file), str(given), str(found)],
                    env=os.environ | {"OMP_NUM_THREADS": str(self._threads)},
                    capture_output=True,
                    timeout=SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                what = f"ExecuTorch took more than {SECONDS} seconds"
                raise VerifyError(what, where=self._file) from error
            if done.returncode or not found.exists():
                words = done.stderr.decode(errors="replace").strip().splitlines()
                last = words[-1][-SHOWN:] if words else f"it ended with {done.returncode}"
                raise VerifyError(f"ExecuTorch cannot run it: {last}", where=self._file)
            answer = torch.load(found, weights_only=True)
        self.seconds = answer["seconds"].tolist()
        return [one[0] for one in answer["logits"]]

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return log-probabilities behind every token of some texts, float64 [tokens, vocabulary] each.

        The first half of a text is read at once and the second token by token from the cache, as answers are generated.
        """
        calls, parts = list[Call](), list[int]()
        for ids in texts:
            half = (len(ids) + 1) // 2
            calls += [(ids[:half], 0), *(([ids[place]], place) for place in range(half, len(ids)))]
            parts.append(1 + len(ids) - half)
        found = iter(self.run(calls))
        return [torch.cat([next(found) for _ in range(count)]).double().log_softmax(-1) for count in parts]
