"""What a model is worth on the held-out records of a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from edgetune.core.progress import Progress, silent
from edgetune.data.encode import Example, batches
from edgetune.measure.divergence import Divergence, Reference
from edgetune.measure.evaluate import generate, held_out_loss
from edgetune.measure.rouge import rouge_l
from edgetune.recipe.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Quality:
    """What a stage is worth on the held-out records.

    Args:
        loss: nats per response token.
        perplexity: exp(loss).
        rouge_l: mean Rouge-L F1, 0 to 100; NaN where no record asks anything.
        answers: greedy answers in the order of the records, empty for plain text.
        base_style_loss: loss on what the base was pretrained on; None if unknown.
    """

    loss: float
    perplexity: float
    rouge_l: float
    answers: list[str]
    base_style_loss: float | None = None
    score: float | None = None
    """By the metric of `Prepared.scoring`, 0 to 100; None if there is none."""
    divergence: Divergence | None = None
    """From the model before compression; None where there is nothing to compare with."""


def model_loss(model: nn.Module, examples: Sequence[Example], prepared: Prepared) -> float:
    """Return the mean loss over the examples' response tokens, nats."""
    size = prepared.recipe.evaluation.batch_size
    return held_out_loss(model, batches(examples, size, prepared.pad_id)).loss


def model_answers(model: nn.Module, prepared: Prepared, progress: Progress = silent) -> list[str]:
    """Return the greedy answers to the held-out prompts, in order; nothing is asked of plain text."""
    evaluation, asked = prepared.recipe.evaluation, prepared.asked
    examples = [prepared.held_out_examples[index] for index in asked]
    answers = [""] * len(prepared.held_out)
    said = generate(
        model,
        prepared.backbone.tokenizer,
        [example.input_ids[: example.response_start] for example in examples],
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.batch_size,
        on_progress=lambda done, total: progress("answers", done, total),
    )
    for index, text in zip(asked, said, strict=True):
        answers[index] = text
    return answers


def reference_of(model: nn.Module, prepared: Prepared) -> Reference:
    """Return the predictions of a model on the held-out records, to compare with what becomes of it."""
    size = prepared.recipe.evaluation.batch_size
    return Reference(model, list(batches(prepared.held_out_examples, size, prepared.pad_id)))


def model_quality(
    model: nn.Module, prepared: Prepared, progress: Progress, stage: str, reference: Reference | None = None
) -> Quality:
    """Measure a PyTorch model on the held-out records, beside a reference if there is one.

    Cost: one forward pass over all records and one greedy generation a record; with a reference one or two more passes.
    """
    loss = model_loss(model, prepared.held_out_examples, prepared)
    answers = model_answers(
        model, prepared, lambda _, done, total: progress(f"{stage}: answers", done, total)
    )
    style = model_loss(model, prepared.base_style, prepared) if prepared.base_style else None
    quality = quality_of(loss, answers, prepared, style)
    return quality if reference is None else replace(quality, divergence=reference.of(model))


def quality_of(
    loss: float, answers: list[str], prepared: Prepared, base_style_loss: float | None = None
) -> Quality:
    """Return what a loss and answers to the held-out records are worth."""
    rouge, score = rouge_of(answers, prepared), score_of(answers, prepared)
    return Quality(loss, perplexity_of(loss), rouge, answers, base_style_loss, score)


def rouge_of(answers: Sequence[str], prepared: Prepared) -> float:
    """Return the mean Rouge-L F1 of answers to the held-out records, 0 to 100, without what the template says.

    NaN where no record asks anything.
    """
    said, wanted = _compared(answers, prepared)
    return rouge_l(said, wanted) if wanted else math.nan


def score_of(answers: Sequence[str], prepared: Prepared) -> float | None:
    """Return the score of answers to the held-out records, 0 to 100, None if nothing but Rouge-L is asked for."""
    return None if prepared.scoring is None else prepared.scoring.mean(*_compared(answers, prepared))


def _compared(answers: Sequence[str], prepared: Prepared) -> tuple[list[str], list[str]]:
    """Return what was said and what was expected, of the records that ask something."""
    said = prepared.answers(answers)
    asked = prepared.asked
    return [said[index] for index in asked], [prepared.held_out[index].response for index in asked]


def perplexity_of(loss: float) -> float:
    """Return exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
