"""From a tuned model to a file that devices run: compress, write, verify, and measure in llama.cpp itself."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.sequential import compress_model
from edgetune.core.errors import ModelError
from edgetune.core.events import Listener, Verified, ignore
from edgetune.core.progress import Progress
from edgetune.core.quantised import QuantisedMatrix
from edgetune.data.encode import batches
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.verify import verify
from edgetune.run.prepare import Prepared
from edgetune.run.rows import Quality, perplexity_of, rouge_of


def compress_to_file(
    model: PreTrainedModel,
    method: CompressionMethod,
    path: Path,
    prepared: Prepared,
    *,
    ledger_digest: str,
    listener: Listener = ignore,
) -> dict[str, QuantisedMatrix]:
    """Compress a model in place and write the very codes the solver chose.

    Args:
        model: becomes the model that the file computes with.
        method: the compression method.
        path: the GGUF file.
        prepared: calibration sample, tokenizer, digests.
        ledger_digest: goes into the file's metadata; empty for an untuned base.
        listener: receives one event a matrix.

    Returns:
        The quantised matrices by parameter name.

    Raises:
        ModelError: if the model has a trained prefix.
    """
    refuse_prefix(model)
    size = prepared.recipe.evaluation.batch_size
    calibration = list(batches(prepared.calibration_examples, size, prepared.pad_id))
    packed = compress_model(model, calibration, method, listener)
    metadata = {
        "base_digest": prepared.backbone.digest,
        "ledger_digest": ledger_digest,
        "method": prepared.method.name if ledger_digest else "",
        "compression": f"{method.name} {method.grid.name}",
    }
    write_gguf(path, model, prepared.backbone.tokenizer, quantised=packed, metadata=metadata)
    return packed


def refuse_prefix(model: nn.Module) -> None:
    """Refuse to write a model whose fine-tune is no change of weights.

    Raises:
        ModelError: if it is not a plain transformers model.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            "a trained prefix cannot be merged into the weights, so there is no model file of it",
            hint="keep the ledger, or tune weights or LoRA",
        )


def verify_file(path: Path, model: PreTrainedModel, prepared: Prepared) -> Verified:
    """Compare the file in llama.cpp with the model it was written from, on the server's own sample.

    Raises:
        VerifyError: if tokens, chat template, log-probabilities or perplexity differ.
    """
    texts = [f"{record.instruction}\n{record.context}\n{record.response}" for record in prepared.calibration]
    examples = [(example.input_ids, example.response_start) for example in prepared.calibration_examples]
    return verify(path, model, prepared.backbone.tokenizer, examples, texts)


def file_quality(engine: LlamaCpp, prepared: Prepared, progress: Progress) -> Quality:
    """Measure a GGUF file in llama.cpp on the same records, prompts and tokens."""
    losses: list[float] = []
    answers: list[str] = []
    total = len(prepared.held_out_examples)
    for done, example in enumerate(prepared.held_out_examples, start=1):
        losses += [-value for value in engine.log_probabilities(example.input_ids, example.response_start)]
        prompt = list(example.input_ids[: example.response_start])
        answers.append(engine.generate(prompt, prepared.recipe.evaluation.max_new_tokens).strip())
        progress("llama.cpp: answers", done, total)
    loss = math.fsum(losses) / len(losses)
    return Quality(loss, perplexity_of(loss), rouge_of(answers, prepared), answers)
