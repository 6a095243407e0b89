"""Where a run begins if its first state is computed at the server: once, kept beside the ledger, and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from edgetune.core.batch import Batch
from edgetune.core.canonical import saved
from edgetune.core.errors import ModelError
from edgetune.core.files import write_atomic
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense
from edgetune.models.digest import tensor_digest
from edgetune.tune import DenseTuned, Target

START = "start"
"""Key of a ledger's extra entries: digest of the state before the first step, where that was computed."""
FILE = "start.safetensors"
RUN, DIGEST = "run", "digest"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a worker's handle begins.

    Decompositions differ by rounding from machine to machine and by the number of threads, so that the state is
    computed once: a run that goes on reads it, and devices receive it with every message.

    Args:
        sample: the server's own records, by batches.
        folder: where the state is kept; nowhere if not given.
        run: names the run that it is kept for.
        awaited: nothing is computed; the state, and its name, come from the server.
    """

    sample: Sequence[Batch] = ()
    folder: Path | None = None
    run: str = ""
    awaited: bool = False

    def begin(self, target: Target, tuned: Tuned, seed: int) -> str:
        """Let a handle begin where its target says.

        Returns:
            The digest of the state; empty if it is the seed's, or awaited.

        Raises:
            ModelError: if the file of the state is damaged, or as `Target.start`.
            ConfigError: as `Target.start`.
            OutputError: if it cannot be kept.
        """
        if self.awaited or not target.ships or not isinstance(tuned, DenseTuned):
            return ""
        state = self._kept()
        if state is None:
            state = target.start(tuned, seed, self.sample)
            self._keep(state)
        tuned.begin(state)
        return tensor_digest(state.tensors.items())

    def _kept(self) -> Dense | None:
        """Return the state of this run, if there is one already."""
        path = self.folder / FILE if self.folder is not None else None
        if path is None or not path.exists():
            return None
        hint = "delete the folder to start again"
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                found: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ModelError("the run's start is damaged", where=path, hint=hint) from error
        if header.get(RUN) != self.run:
            return None  # of a run that left no ledger here, else this one would have been refused
        if header.get(DIGEST) != tensor_digest(found.items()):
            raise ModelError("the run's start is damaged", where=path, hint=hint)
        return Dense(found)

    def _keep(self, state: Dense) -> None:
        if self.folder is None:
            return
        header = {RUN: self.run, DIGEST: tensor_digest(state.tensors.items())}
        data = saved({name: one.contiguous() for name, one in state.tensors.items()}, header)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / FILE, lambda temporary: temporary.write_bytes(data))
