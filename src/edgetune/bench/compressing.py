"""One compression of one model, measured in a process of its own: divergence, perplexity, seconds, memory, bytes.

python -m edgetune.bench.compressing CELL.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from edgetune.compress.sequential import compress_model
from edgetune.core.allocator import return_freed_blocks
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError
from edgetune.core.integers import grid_named
from edgetune.core.keys import stream
from edgetune.data.packing import PIECE, documents, pack
from edgetune.measure.divergence import Reference
from edgetune.measure.evaluate import held_out_loss
from edgetune.measure.memory import PeakMemory
from edgetune.methods.catalogue import compression_method
from edgetune.models.backbone import load_backbone

TOKENS = "tokens.safetensors"
"""Beside a model: `calib` and `test`, int [sequences, length], in place of text."""
LONGEST = 512
"""Tokens of a sequence at most."""
MEASURED = 16_384
"""Tokens that are measured on where text is held out of the calibration's."""
FIFTH = 5
TOGETHER = 2_048
"""Tokens of a batch, or one sequence."""


def measure(
    model: str, method: str, grid: str, seed: int, *, text: str | None, test: str | None, tokens: int
) -> dict[str, Any]:
    """Compress the decoder blocks of a model and compare its predictions with those before.

    Embedding, head and whatever else is no matrix of a block stay as they are, so that figures are those of other
    tools on the same matrices.

    Args:
        model: folder, file or name.
        method: public name.
        grid: public name, of GGUF or of integers.
        seed: which of the text is calibrated on; of `TOKENS` all sequences for 0, three quarters drawn at random else.
        text: a file to calibrate on; None for the `TOKENS` of the model.
        test: a file to measure on; every fifth piece of `text` if there is none.
        tokens: to calibrate on.

    Returns:
        `kl`, `kl_rare`, `top_1`, `perplexity` (exp of nats a token), `cpu_seconds` of the compression, `memory` (bytes
        of its peak above the start), `bytes` of the matrices as stored and their `weights`, `tokens`.

    Raises:
        DataError: nothing to calibrate or measure on.
    """
    backbone = load_backbone(model)
    calibration, held_out = _data(
        backbone.folder, backbone.tokenizer, backbone.model, text, test, tokens, seed
    )
    whole = replace(compression_method(method), grid=grid_named(grid), embeddings=None)
    reference = Reference(backbone.model, held_out)
    with PeakMemory() as memory:
        start = time.process_time()
        packed = compress_model(backbone.model, calibration, whole)
        seconds = time.process_time() - start
    far, quality = reference.of(backbone.model), held_out_loss(backbone.model, held_out)
    return {
        "kl": far.every, "kl_rare": far.rare, "top_1": far.top_1, "perplexity": quality.perplexity,
        "cpu_seconds": seconds, "memory": memory.peak_bytes - memory.start_bytes,
        "bytes": sum(matrix.stored_bytes for matrix in packed.values()),
        "weights": sum(matrix.codes.numel() for matrix in packed.values()),
        "tokens": sum(int(one.attention_mask.sum()) for one in calibration),
    }  # fmt: skip


def _data(
    folder: Path, tokenizer: PreTrainedTokenizerBase, model: Any, text: str | None, test: str | None, tokens: int,
    seed: int,
) -> tuple[list[Batch], list[Batch]]:  # fmt: skip
    """Return batches to calibrate on and to measure on."""
    if text is None:
        if not (folder / TOKENS).is_file():
            raise DataError("no text to calibrate on", where=folder, hint="--calibration FILE")
        said = load_file(folder / TOKENS)
        rows = said["calib"].long()
        if seed:
            drawn = stream(seed, "calibration").permutation(len(rows))[: len(rows) * 3 // 4]
            rows = rows[torch.from_numpy(drawn)]
        return _batches(rows.tolist()), _batches(said["test"].long().tolist())
    length = min(LONGEST, int(getattr(model.config, "max_position_embeddings", 0) or LONGEST))
    pieces = list(_pieces(Path(text)))
    if test is not None:
        measured = list(_pieces(Path(test)))
    else:
        measured = pieces[::FIFTH]
        pieces = [piece for at, piece in enumerate(pieces) if at % FIFTH]
    both = [
        pack(some, tokenizer, length=length, tokens=many, seed=key)
        for some, many, key in ((pieces, tokens, seed), (measured, MEASURED, 0))
    ]
    if not all(both):
        raise DataError("too little text to calibrate and to measure on", where=text)
    return _batches(both[0]), _batches(both[1])


def _pieces(path: Path) -> Iterator[str]:
    for text in documents(path):
        yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def _batches(rows: Sequence[Sequence[int]]) -> list[Batch]:
    """Return batches of sequences of one length, every token but the first a label."""
    ids = torch.tensor([list(row) for row in rows])
    return [
        Batch(part, torch.ones_like(part), part)
        for part in torch.split(ids, max(1, TOGETHER // ids.shape[1]))
    ]


if __name__ == "__main__":
    return_freed_blocks()
    cell = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps(measure(**cell)))
