"""From a tuned model to a file that devices run: compress and write, verify, and measure in llama.cpp itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.sequential import compress_model
from edgetune.compress.store import clear
from edgetune.core.errors import ModelError
from edgetune.core.events import Listener, ignore
from edgetune.core.export_events import Verified
from edgetune.core.files import writable_folder
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress
from edgetune.core.quantised import BlockGrid, QuantisedMatrix
from edgetune.export.gguf_file import write_planned
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.plan import ExportPlan
from edgetune.export.tensors import hold_as_stored
from edgetune.export.verify import verify
from edgetune.models.stored import packed_weights
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.quality import Quality, quality_of
from edgetune.recipe.rehearsal import texts_of
from edgetune.tune import has_bottlenecks


def compress_to_file(
    model: PreTrainedModel,
    method: CompressionMethod,
    path: Path,
    prepared: Prepared,
    plan: ExportPlan,
    *,
    ledger: Ledger | None,
    listener: Listener = ignore,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
    scratch: Path | None = None,
) -> dict[str, QuantisedMatrix]:
    """Compress a model in place and write the very codes the solver chose.

    Args:
        model: becomes the model that the file computes with.
        method: the compression method.
        path: the GGUF file; not its final name before it is verified (`deploy`).
        prepared: calibration sample, digests.
        plan: what is written.
        ledger: what the model learnt, for the file's metadata; None for an untuned base.
        listener: receives what it is calibrated on, and one event a matrix.
        grids: parameter name to a grid in place of the method's.
        scratch: a folder in which solved blocks are kept, so that a killed compression goes on (`solved_in`).

    Returns:
        The quantised matrices by parameter name.

    Raises:
        ConfigError, DataError: as `calibration_of`.
        ModelError: if the model has a trained prefix or a bottleneck adapter, or is not the one that was planned for.
    """
    refuse_unmerged(model)
    calibration = calibration_of(prepared) if method.reads else None
    if calibration is not None:
        listener(calibration.event)
    batches = calibration.batches if calibration else []
    packed = compress_model(model, batches, method, listener, grids=grids, scratch=scratch)
    hold_as_stored(model, plan.tensors)
    metadata = {
        "base_digest": prepared.backbone.digest,
        "ledger_digest": ledger.digest if ledger else "",
        "method": ledger.method if ledger else "",
        "compression": method.label,
    }
    write_planned(path, plan, model, quantised=packed, metadata=metadata)
    return packed


@contextmanager
def solved_in(folder: Path) -> Iterator[Path]:
    """Lend a folder for solved blocks; it goes when the work is done, and stays for the next start if it is cut off.

    An error cuts it off as a kill does: a disk that was full, or a block that cannot be solved with this method, is no
    reason to solve the blocks before it again. What another job left there is not read, and goes with the next success.

    Raises:
        OutputError: if it cannot be made.
    """
    writable_folder(folder)
    yield folder
    clear(folder)
    with suppress(OSError):  # somebody else's files stay, and so does their folder: the work is done
        folder.rmdir()


def write_in_half(
    model: PreTrainedModel,
    path: Path,
    prepared: Prepared,
    plan: ExportPlan,
    *,
    ledger: Ledger | None,
    carried: Mapping[str, QuantisedMatrix] = MappingProxyType({}),
) -> None:
    """Write a model in fp16, uncompressed; in place it becomes the model that the file computes with.

    Args:
        model, path, prepared, plan, ledger: as in `compress_to_file`.
        carried: matrices of the base that are written as they came (`codes_of`).
    """
    hold_as_stored(model, plan.tensors)
    metadata = {
        "base_digest": prepared.backbone.digest,
        "ledger_digest": ledger.digest if ledger else "",
        "method": ledger.method if ledger else "",
    }
    write_planned(path, plan, model, quantised=carried, metadata=metadata)


def codes_of(prepared: Prepared) -> dict[str, QuantisedMatrix]:
    """Return the matrices of a base whose packed codes a GGUF file holds bit for bit (`LevelMatrix.in_blocks`).

    Empty for a base of plain weights.
    """
    backbone = prepared.backbone
    packed = packed_weights(backbone.folder, backbone.model)
    own = dict(backbone.model.named_parameters())
    return {} if packed is None else packed.in_blocks(own)


def refuse_unmerged(model: nn.Module) -> None:
    """Refuse to write a model whose fine-tune is no change of weights.

    Raises:
        ModelError: if it is not a plain transformers model.
    """
    if not isinstance(model, PreTrainedModel) or has_bottlenecks(model):
        what = "bottleneck adapter" if has_bottlenecks(model) else "trained prefix"
        raise ModelError(
            f"a {what} cannot be merged into the weights, so there is no model file of it",
            hint="keep the ledger, or tune weights or LoRA",
        )


def verify_file(path: Path, model: PreTrainedModel, prepared: Prepared, plan: ExportPlan) -> Verified:
    """Compare the file in llama.cpp with the model it was written from, on the server's own sample.

    Raises:
        VerifyError: if tokens, chat template, log-probabilities or perplexity differ.
    """
    examples = [(example.input_ids, example.response_start) for example in prepared.calibration_examples]
    return verify(
        path,
        model,
        prepared.backbone.tokenizer,
        plan,
        examples,
        texts_of(prepared, prepared.calibration),
        ends=prepared.ends,
    )


def file_quality(engine: LlamaCpp, prepared: Prepared, progress: Progress) -> Quality:
    """Measure a GGUF file in llama.cpp on the same records, prompts and tokens."""
    losses: list[float] = []
    answers: list[str] = []
    total = len(prepared.held_out_examples)
    for done, example in enumerate(prepared.held_out_examples, start=1):
        losses += [-value for value in engine.log_probabilities(example.input_ids, example.response_start)]
        prompt = list(example.input_ids[: example.response_start])
        asks = not prepared.held_out[done - 1].plain
        most = prepared.recipe.evaluation.max_new_tokens
        answers.append(engine.generate(prompt, most).strip() if asks else "")
        progress("llama.cpp: answers", done, total)
    loss = math.fsum(losses) / len(losses)
    return quality_of(loss, answers, prepared)
