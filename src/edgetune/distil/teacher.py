"""Who a student learns from: a model beside it, or what one said of the records beforehand (`distil.stored`)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.heads import Apart, Rows
from edgetune.core.jensen_shannon import JensenShannon

Where = tuple[torch.Tensor, torch.Tensor]
"""Positions of a batch: records and places, both int64 [tokens]."""


class Teacher(ABC):
    """What is known of the next token at positions of a batch.

    Args:
        digest: SHA-256 of whatever it says.
        model: digest of the model that says it, or said it; `digest` if not given.
    """

    top: int | None = None
    """Tokens that it names at a position; None where it names all."""

    def __init__(self, digest: str, model: str | None = None) -> None:
        self.digest = digest
        self.named = digest if model is None else model
        """Digest of the model that says it, whatever the records."""

    @property
    def shared(self) -> str:
        """SHA-256 of what devices with records of their own have in common of it."""
        return self.digest

    @abstractmethod
    def rows(self, batch: Batch, where: Where) -> Rows:
        """Return tensors [tokens, ...] from which a few positions' distributions can be made.

        Raises:
            DataError: if it knows nothing of a record.
        """

    @abstractmethod
    def divergence(self, kind: JensenShannon, student: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        """Return the divergence at some positions, float [tokens].

        Args:
            kind: which divergence.
            student: its logits, float [tokens, vocabulary].
            rows: those of `rows` at the same positions.
        """


class ModelTeacher(Teacher):
    """A frozen model of the student's vocabulary.

    Heads may be padded to different sizes: both distributions are those over the tokens that both have.

    Args:
        model: in evaluation mode, on the student's device.
        digest: of its weights and its tokenizer.
    Cost: a forward pass a batch, and what its head reads of the positions, [tokens, width].
    """

    def __init__(self, model: nn.Module, digest: str) -> None:
        super().__init__(digest)
        self.model, self._apart = model, Apart()

    @torch.no_grad()
    def rows(self, batch: Batch, where: Where) -> Rows:
        """Return what its head reads there."""
        return (self._apart.rows(self.model, batch, where),)

    def divergence(self, kind: JensenShannon, student: torch.Tensor, *rows: torch.Tensor) -> torch.Tensor:
        """Return the divergence over the tokens that both heads have."""
        with torch.no_grad():
            teacher = self._apart.logits(self.model, rows[0])
        shared = min(student.shape[-1], teacher.shape[-1])
        return kind(student[:, :shared].log_softmax(-1), teacher[:, :shared].log_softmax(-1))
