"""What distillation adds to a run: an objective in place of the loss, and batches that the student completes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256

from edgetune.core.batch import Batch
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.core.tuned import Tuned
from edgetune.distil.objective import Distilled
from edgetune.distil.on_policy import OnPolicy
from edgetune.distil.reward import Reward
from edgetune.distil.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Lesson:
    """Generalised knowledge distillation of one student by one teacher.

        L = (1 - lambda) E_(x, y) ~ data [D(P, Q)(y | x)] + lambda E_x E_y ~ Q [D(P, Q)(y | x)]

    Args:
        teacher: P.
        kind: D.
        policy: lambda, and how the student samples.
        vocabulary: tokens that teacher and student both have.
        ends: tokens that end a response.
        pad_id: the padding token.
        reward: scores what the student sampled; None where the teacher alone decides.
    Source: Agarwal et al. 2024, arXiv:2306.13649, Algorithm 1.
    """

    teacher: Teacher
    kind: JensenShannon
    policy: OnPolicy
    vocabulary: int
    ends: frozenset[int]
    pad_id: int
    reward: Reward | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what is learnt beside records and student."""
        return self._digest(self.teacher.digest)

    @property
    def shared(self) -> str:
        """SHA-256 of what devices must agree on; each may have a file of what one teacher said of its records."""
        return self._digest(self.teacher.shared)

    def _digest(self, teacher: str) -> str:
        said = {
            "teacher": teacher, "kind": asdict(self.kind), "policy": asdict(self.policy),
            "vocabulary": self.vocabulary, "ends": sorted(self.ends),
        }  # fmt: skip
        if self.reward is not None:
            said["reward"] = [self.reward.digest, self.reward.weight]
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def objective(self) -> Distilled:
        """Return the objective for one model in memory."""
        return Distilled(self.kind, self.teacher, self.reward.weight if self.reward else 0.0)

    def batches(
        self, given: Iterator[Batch], tuned: Tuned, *, seed: int, device: int, first: int
    ) -> Iterator[Batch]:
        """Return the batches of a device's steps; see `OnPolicy.batches`."""
        if not self.policy.fraction:
            return given
        return self.policy.batches(
            given, tuned, ends=self.ends, vocabulary=self.vocabulary, pad_id=self.pad_id,
            seed=seed, device=device, first=first, reward=self.reward,
        )  # fmt: skip
