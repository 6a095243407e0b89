"""Reload an exported file in llama.cpp and prove that it computes what the PyTorch model computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgetune.core.errors import ModelError, VerifyError
from edgetune.core.events import Verified
from edgetune.export.gguf_file import FILE_TYPES
from edgetune.export.gguf_read import read_metadata, read_tensors
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.tensors import plan
from edgetune.export.tolerance import FLOAT, Example, Tolerance, log_probabilities, quantised_tolerance

CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one, please!"},
    ],
)
"""What the chat template is tried on; the second is left out if the template itself refuses it."""


QUANTISED_TYPES = (FILE_TYPES["Q4_0"], FILE_TYPES["Q8_0"])


def verify(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    texts: Sequence[str],
    *,
    tolerance: Tolerance | None = None,
    threads: int = 1,
) -> Verified:
    """Compare weights, tokenizer, chat template, log-probabilities and perplexity of a file with its model.

        |mean_t |p_t - q_t|| <= mean,   max_t |p_t - q_t| <= maximum,   |exp(p - q) - 1| <= perplexity

    Args:
        path: the GGUF file.
        model: the PyTorch model whose weights are the file's, dequantised; computed in float32.
        tokenizer: the tokenizer the file was made with.
        examples: ids with the position from which they are scored; at least one position in all.
        texts: every one must give equal ids in both tokenizers.
        tolerance: bounds; if None, `FLOAT` for F32 and F16 files, `quantised_tolerance` for others.
        threads: CPU threads of llama.cpp.

    Returns:
        The measured agreement, an event for the log.

    Raises:
        VerifyError: at the first thing that differs, showing it.
        ModelError: if the file cannot be loaded, or no position is to be scored.
    Cost: one forward pass an example in PyTorch (two if quantised), one token a position in llama.cpp.
    """
    compare_weights(path, model)
    with LlamaCpp(path, threads=threads, context=max([512, *(len(ids) + 1 for ids, _ in examples)])) as llama:
        compare_tokenizers(llama, tokenizer, texts)
        compare_templates(llama, tokenizer)
        theirs = torch.tensor(
            [value for ids, start in examples for value in llama.log_probabilities(ids, start)],
            dtype=torch.float64,
        )
    if not len(theirs):
        raise ModelError("no token to compare log-probabilities on", where=path)
    ours = log_probabilities(model, examples)
    found = _agreement(path, ours, theirs, len(texts))
    _judge(found, tolerance or _default_tolerance(path, model, examples, ours))
    return found


def compare_weights(path: Path, model: PreTrainedModel) -> None:
    """Check that every tensor of the file holds the model's weights.

        |file - model| <= 2^-10 |model| + 2^-24

    the rounding of a float to fp16 (2^-8 where the model itself is held in bfloat16).
    Catches a damaged tensor too small in effect to move the perplexity.

    Raises:
        VerifyError: if a tensor is missing, unknown or different; names it.
    """
    expected = {tensor.name: tensor for tensor in plan(model, {}, "F32")}
    seen = set()
    slack = 2.0**-8 if model.dtype == torch.bfloat16 else 2.0**-10
    for name, values in read_tensors(path):
        seen.add(name)
        if name not in expected:
            # A tied head that was quantised by itself is the one tensor a model does not list.
            if name == "output.weight":
                continue
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


def compare_tokenizers(llama: LlamaCpp, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Check that both tokenizers give equal ids on every text.

    Raises:
        VerifyError: at the first text on which they differ, with the place.
    """
    for text in texts:
        _same_ids(list(tokenizer(text).input_ids), llama.tokenise(text), text, llama, tokenizer)


def compare_templates(llama: LlamaCpp, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the file holds the tokenizer's chat template and llama.cpp renders it to the same ids.

    Raises:
        VerifyError: if the template is missing or another one, or a rendered conversation differs.
    """
    template: Any = tokenizer.chat_template
    ours = template.get("default") if isinstance(template, dict) else template
    stored = llama.metadata.get("tokenizer.chat_template")
    if stored != ours:
        what = "the chat template is missing" if stored is None else "the file has another chat template"
        raise VerifyError(what, where=llama.path, hint="export again with this tokenizer")
    if ours is None:
        return
    for number, messages in enumerate(CONVERSATIONS):
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may raise what it likes
            if number == 0:
                raise
            continue
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        _same_ids(ids, llama.tokenise(llama.render(messages)), str(text), llama, tokenizer)


def _same_ids(
    ours: list[int], theirs: list[int], text: str, llama: LlamaCpp, tokenizer: PreTrainedTokenizerBase
) -> None:
    if ours == theirs:
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    before = tokenizer.decode(ours[:place])
    raise VerifyError(
        f"tokenizers differ at token {place} after {before[-40:]!r}: "
        f"{tokenizer.convert_ids_to_tokens(ours[place : place + 3])} here, "
        f"{tokenizer.convert_ids_to_tokens(theirs[place : place + 3])} in llama.cpp; text {text[:80]!r}",
        where=llama.path,
        hint="name the pre-tokenizer explicitly",
    )


def _default_tolerance(
    path: Path, model: PreTrainedModel, examples: Sequence[Example], ours: torch.Tensor
) -> Tolerance:
    quantised = read_metadata(path).get("general.file_type") in QUANTISED_TYPES
    return quantised_tolerance(model, examples, ours) if quantised else FLOAT


def _agreement(path: Path, ours: torch.Tensor, theirs: torch.Tensor, texts: int) -> Verified:
    gaps = (ours - theirs).abs()
    return Verified(
        file=str(path),
        max_log_probability_difference=float(gaps.max()),
        mean_log_probability_difference=float(gaps.mean()),
        perplexity_torch=math.exp(-float(ours.mean())),
        perplexity_llama_cpp=math.exp(-float(theirs.mean())),
        tokenizer_texts=texts,
    )


def _judge(found: Verified, bounds: Tolerance) -> None:
    """Raise if a measured figure exceeds its bound (a NaN exceeds every bound)."""
    ratio = found.perplexity_llama_cpp / found.perplexity_torch
    within = (
        found.mean_log_probability_difference <= bounds.mean
        and found.max_log_probability_difference <= bounds.maximum
        and abs(ratio - 1) <= bounds.perplexity
    )
    if not within:
        raise VerifyError(
            "llama.cpp does not compute what PyTorch computes: log-probabilities differ by "
            f"{found.mean_log_probability_difference:.4f} on average (bound {bounds.mean:.4f}), "
            f"{found.max_log_probability_difference:.4f} at most (bound {bounds.maximum:.4f}); perplexity "
            f"{found.perplexity_torch:.4f} here, {found.perplexity_llama_cpp:.4f} there",
            where=found.file,
        )
