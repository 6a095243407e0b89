"""What a model is worth on the held-out records of a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from edgetune.core.progress import Progress, silent
from edgetune.data.encode import Example, batches
from edgetune.measure.evaluate import generate, held_out_loss
from edgetune.measure.rouge import rouge_l
from edgetune.recipe.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Quality:
    """What a stage is worth on the held-out records.

    Args:
        loss: nats per response token.
        perplexity: exp(loss).
        rouge_l: mean Rouge-L F1, 0 to 100.
        answers: greedy answers in the order of the records.
        base_style_loss: loss on what the base was pretrained on; None if unknown.
    """

    loss: float
    perplexity: float
    rouge_l: float
    answers: list[str]
    base_style_loss: float | None = None


def model_loss(model: nn.Module, examples: Sequence[Example], prepared: Prepared) -> float:
    """Return the mean loss over the examples' response tokens, nats."""
    size = prepared.recipe.evaluation.batch_size
    return held_out_loss(model, batches(examples, size, prepared.pad_id)).loss


def model_answers(model: nn.Module, prepared: Prepared, progress: Progress = silent) -> list[str]:
    """Return the greedy answers to the held-out prompts, in order."""
    evaluation = prepared.recipe.evaluation
    return generate(
        model,
        prepared.backbone.tokenizer,
        [example.input_ids[: example.response_start] for example in prepared.held_out_examples],
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.batch_size,
        on_progress=lambda done, total: progress("answers", done, total),
    )


def model_quality(model: nn.Module, prepared: Prepared, progress: Progress, stage: str) -> Quality:
    """Measure a PyTorch model on the held-out records.

    Cost: one forward pass over all records and one greedy generation a record.
    """
    loss = model_loss(model, prepared.held_out_examples, prepared)
    answers = model_answers(
        model, prepared, lambda _, done, total: progress(f"{stage}: answers", done, total)
    )
    style = model_loss(model, prepared.base_style, prepared) if prepared.base_style else None
    return Quality(loss, perplexity_of(loss), rouge_of(answers, prepared), answers, style)


def rouge_of(answers: Sequence[str], prepared: Prepared) -> float:
    """Return the mean Rouge-L F1 of answers to the held-out records, 0 to 100, without what the template says."""
    return rouge_l(prepared.answers(answers), [record.response for record in prepared.held_out])


def perplexity_of(loss: float) -> float:
    """Return exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
