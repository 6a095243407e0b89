"""The recipe section about learning from a teacher."""

from __future__ import annotations

from pydantic import Field

from edgetune.recipe.method_section import Section


class DistillationSection(Section):
    """Whom the tuned model learns from, in place of the loss on responses."""

    teacher: str | None = None
    """A model of the student's vocabulary: folder, GGUF file, Hub id, `embedded`. Not set: nothing is distilled."""
    teacher_logits: str | None = None
    """In its place a file of `edgetune teach`: what a teacher said of these very records."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Which divergence: 0 forward KL(teacher, student), 1 reverse, between them Jensen-Shannon."""
    normalise: bool = False
    """Divide by beta (1 - beta), so that the divergences of all beta are of one size."""
    on_policy: float | None = Field(default=None, ge=0, le=1)
    """lambda: probability that a step learns on responses that the student samples; 0.5, of teacher_logits 0."""
    temperature: float = Field(default=0.9, gt=0, le=100)
    """Of that sampling; the divergence knows none."""
    max_new_tokens: int = Field(default=64, ge=1, le=1 << 16)
    """Length of a sampled response."""
    regenerate_every: int = Field(default=1, ge=1, le=10_000)
    """Steps whose responses are sampled together, at the weights of the first of them."""
    reward: str | None = None
    """Score of sampled responses that is raised too: exact_match, token_f1, rouge_l; on the command line a .py file."""
    reward_weight: float = Field(default=0.5, gt=0, le=1)
    """Weight of the reward; that of the divergence is the rest."""

    @property
    def wanted(self) -> bool:
        """Whether there is a teacher of any kind."""
        return self.teacher is not None or self.teacher_logits is not None

    @property
    def share(self) -> float:
        """lambda, where it is not set too."""
        if self.on_policy is not None:
            return self.on_policy
        return 0.0 if self.teacher is None else 0.5
