"""Reload an exported file in llama.cpp and prove that it computes what the PyTorch model computes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgetune.core.errors import ModelError, VerifyError
from edgetune.core.export_events import Verified
from edgetune.core.gguf_read import read_gguf, read_tensors
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.parity import Text, compare_ends, compare_templates, compare_texts
from edgetune.export.plan import ExportPlan
from edgetune.export.tensors import float_tensors
from edgetune.export.tolerance import Example, Tolerance, measure

POSITIONS = 1000
"""Positions that are scored at most; each is a forward pass of one token in llama.cpp, twice."""


def verify(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: ExportPlan,
    examples: Sequence[Example],
    texts: Sequence[Text],
    *,
    ends: Sequence[int] = (),
    threads: int = 1,
) -> Verified:
    """Compare weights, tokenizer, chat template, log-probabilities and perplexity of a file with its model.

        |mean_t |p_t - q_t|| <= mean,   max_t |p_t - q_t| <= maximum,   |exp(p - q) - 1| <= perplexity

    Twice: with keys, values and their sums in fp32, which shows whether the file computes what the model computes,
    and as llama.cpp runs by default, which shows how far its own fp16 attention takes it. Both bounds are measured on
    the model (`tolerance.measure`).

    Args:
        path: the GGUF file.
        model: the PyTorch model whose weights are the file's, dequantised (`hold_as_stored`); computed in float32.
        tokenizer: the tokenizer the file was made with.
        plan: what the file is to hold.
        examples: ids with the position from which they are scored; at least one position in all. Of many, as many
            are scored as hold `POSITIONS` positions.
        texts: every one must give its ids in llama.cpp.
        ends: ids at which an answer must end in llama.cpp.
        threads: CPU threads of llama.cpp.

    Returns:
        The measured agreement, an event for the log.

    Raises:
        VerifyError: at the first thing that differs, showing it.
        ModelError: if the file cannot be loaded, or no position is to be scored.
    Cost: three forward passes an example in PyTorch, and two of one token a position in llama.cpp.
    """
    compare_header(path, plan)
    compare_weights(path, model, plan)
    scored = _at_most(examples, POSITIONS)
    if not scored:
        raise ModelError("no token to compare log-probabilities on", where=path)
    context = max([min(512, plan.context), *(len(ids) + 1 for ids, _ in scored)])
    measured = measure(model, plan, scored)
    with LlamaCpp(path, threads=threads, context=context, exact=True) as llama:
        compare_texts(llama, tokenizer, texts, composes=plan.vocabulary.composes)
        compare_templates(llama, tokenizer, plan.vocabulary.chat_template)
        exact = _scores(llama, scored)
    _judge(path, measured.values, exact, measured.exact, "with fp32 attention")
    with LlamaCpp(path, threads=threads, context=context) as llama:
        usual = _scores(llama, scored)
        _judge(path, measured.values, usual, measured.usual, "as it runs")
        compare_ends(llama, tokenizer, ends)
    gaps, usual_gaps = (exact - measured.values).abs(), (usual - measured.values).abs()
    return Verified(
        file=str(path),
        max_log_probability_difference=float(gaps.max()),
        mean_log_probability_difference=float(gaps.mean()),
        perplexity_torch=math.exp(-float(measured.values.mean())),
        perplexity_llama_cpp=math.exp(-float(usual.mean())),
        tokenizer_texts=len(texts),
        usual_max_difference=float(usual_gaps.max()),
        usual_mean_difference=float(usual_gaps.mean()),
    )


def _at_most(examples: Sequence[Example], positions: int) -> list[Example]:
    """Return the first examples that hold so many positions, the last one cut."""
    chosen: list[Example] = []
    for ids, start in examples:
        count = min(len(ids) - start, positions)
        if count > 0:
            chosen.append((ids[: start + count], start))
            positions -= count
    return chosen


def _scores(llama: LlamaCpp, examples: Sequence[Example]) -> torch.Tensor:
    found = [value for ids, start in examples for value in llama.log_probabilities(ids, start)]
    return torch.tensor(found, dtype=torch.float64)


def compare_header(path: Path, plan: ExportPlan) -> None:
    """Check that a file says of itself what was planned: hyper-parameters, vocabulary and flags.

    Raises:
        VerifyError: naming the key that is missing or different.
    """
    file, words = read_gguf(path), plan.vocabulary
    expected: dict[str, Any] = {
        "general.architecture": plan.architecture,
        **{f"{plan.architecture}.{key}": value for key, value in plan.parameters.items()},
        "tokenizer.ggml.model": words.model,
        "tokenizer.ggml.pre": words.pre,
        "tokenizer.ggml.tokens": words.tokens,
        "tokenizer.ggml.token_type": words.types,
        "tokenizer.ggml.merges": words.merges or (),
        "tokenizer.ggml.scores": words.scores or (),
        **{f"tokenizer.ggml.{role}_token_id": index for role, index in words.ids.items()},
        **{f"tokenizer.ggml.{flag}": value for flag, value in words.flags.items()},
        "tokenizer.chat_template": words.chat_template,
    }
    for key, value in expected.items():
        listed = isinstance(value, (list, tuple))
        stored: Any = file.array(key) if listed else file.metadata.get(key)
        if stored != (_as_stored(list(value)) if listed else _as_stored(value)):
            raise VerifyError(f"the file's {key} is another than planned", where=path, hint="export it again")


def _as_stored(value: Any) -> Any:
    """Return a value as GGUF holds it: numbers with a fraction in single precision."""
    if isinstance(value, list):
        return [_as_stored(one) for one in value]
    return struct.unpack("<f", struct.pack("<f", value))[0] if isinstance(value, float) else value


def compare_weights(path: Path, model: PreTrainedModel, plan: ExportPlan) -> None:
    """Check that every tensor of the file holds the model's weights.

        |file - model| <= 2^-10 |model| + 2^-24

    the rounding of a float to fp16 (2^-8 where the model itself is held in bfloat16).
    Catches a damaged tensor too small in effect to move the perplexity.

    Raises:
        VerifyError: if a tensor is missing, unknown or different; names it.
    """
    expected = {one.planned.name: one for one in float_tensors(model, plan.tensors)}
    seen = set()
    slack = 2.0**-8 if model.dtype == torch.bfloat16 else 2.0**-10
    for name, values in read_tensors(path):
        seen.add(name)
        if name not in expected:
            raise VerifyError("the file has a tensor the model lacks", where=f"{path}: {name}")
        ours = expected[name].weights()
        stored = torch.from_numpy(values.reshape(tuple(ours.shape)))
        wrong = ~((stored - ours).abs() <= slack * ours.abs() + 2.0**-24)
        if bool(wrong.any()):
            raise VerifyError(
                f"{int(wrong.sum())} of {wrong.numel()} weights differ from the model's",
                where=f"{path}: {name}",
                hint="export again; give verify the model with the dequantised weights",
            )
    missing = sorted(set(expected) - seen)
    if missing:
        raise VerifyError("a tensor of the model is not in the file", where=f"{path}: {missing[0]}")


def _judge(path: Path, ours: torch.Tensor, theirs: torch.Tensor, bounds: Tolerance, how: str) -> None:
    """Raise if a measured figure exceeds its bound (a NaN exceeds every bound)."""
    gaps = (ours - theirs).abs()
    here, there = math.exp(-float(ours.mean())), math.exp(-float(theirs.mean()))
    within = (
        float(gaps.mean()) <= bounds.mean
        and float(gaps.max()) <= bounds.maximum
        and abs(there / here - 1) <= bounds.perplexity
    )
    if not within:
        raise VerifyError(
            f"llama.cpp does not compute what PyTorch computes ({how}): log-probabilities differ by "
            f"{float(gaps.mean()):.2g} on average (bound {bounds.mean:.2g}), {float(gaps.max()):.2g} at most (bound "
            f"{bounds.maximum:.2g}); perplexity {here:.4f} here, {there:.4f} there",
            where=path,
        )
