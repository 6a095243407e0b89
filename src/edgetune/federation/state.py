"""What a tuning run leaves on disk after every round, and how a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from edgetune.core.errors import DigestError
from edgetune.core.events import Listener, RunResumed
from edgetune.core.ledger import Ledger, read_ledger, write_ledger
from edgetune.core.tuned import Tuned
from edgetune.core.update import Update
from edgetune.federation.worker import Worker
from edgetune.models.digest import tensor_digest

Evaluate = Callable[[Tuned], float]
"""One figure of the present weights: held-out loss, or Rouge-L."""


def check_resumable(ledger: Ledger, fingerprint: str, path: Path) -> None:
    """Refuse to go on with a ledger that was made with other settings.

    Raises:
        DigestError: naming the file.
    """
    if ledger.fingerprint != fingerprint:
        raise DigestError(
            "this folder holds a run with another configuration",
            where=path,
            hint="choose another --out, or delete the folder to start again",
        )


class Checkpoint:
    """The ledger of a run in progress.

    Args:
        path: the `.ledger` file.
        worker: names method, base and directions.
        fingerprint: digest of everything that decides results; a file with another one is refused.
    """

    def __init__(self, path: Path, worker: Worker, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint
        self._blank = Ledger(
            base_digest=worker.backbone.digest,
            method=worker.method.name,
            update=worker.tuned.state(),
            directions=worker.directions,
            adapter=worker.tuned.adapter(),
            fingerprint=fingerprint,
            extra=worker.extra,
        )

    def resume(self, listener: Listener) -> Ledger:
        """Return the ledger of the last complete round, or an empty one.

        Raises:
            ModelError: if the file is damaged.
            DigestError: if it was made with another base or configuration.
        """
        if not self.path.exists():
            return self._blank
        ledger = read_ledger(self.path, base_digest=self._blank.base_digest)
        check_resumable(ledger, self._fingerprint, self.path)
        listener(RunResumed(ledger.round))
        return ledger

    def ledger(self, update: Update, round: int, tuned: Tuned | None = None) -> Ledger:
        """Return the ledger after a round; with a handle, the digest of its weights as well."""
        digest = ""
        if tuned is not None and all(weight.dtype == torch.float32 for _, weight in tuned.named_weights()):
            digest = tensor_digest(tuned.named_weights())  # narrower weights are rounded from the ledger
        return replace(self._blank, update=update, round=round, weights_digest=digest)

    def save(self, ledger: Ledger) -> None:
        """Write the ledger atomically; what the log says of the round must be written before."""
        write_ledger(self.path, ledger)
