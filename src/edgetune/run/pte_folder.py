"""From a model to a folder for ExecuTorch: compress, write the program, read the codes back, and run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import placement
from edgetune.core.errors import ConfigError, VerifyError
from edgetune.core.events import Listener
from edgetune.core.integers import INTEGERS
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.pte_layers import BRAIN, EXACT, ROUNDED, Arithmetic
from edgetune.export.pte_program import Said, refuse_for_pte, write_pte
from edgetune.export.pte_runtime import PteDecoder
from edgetune.export.standing_in import standing_in
from edgetune.recipe.preflight import needed_context
from edgetune.recipe.prepare import Prepared
from edgetune.run.graph_folder import (
    ALIKE,
    CLOSE,
    Compared,
    GraphChecked,
    compress_to_graph,
    differences,
    predicted,
    refuse_for_graph,
    some_of,
)

FILE = "model.pte"
ARITHMETIC = {one.name: one for one in (ROUNDED, EXACT)}
"""By the name of the format."""
BLOCKS, OUTSIDE = INTEGERS["int4-g32-bf16"], INTEGERS["int8-row"]
"""Where matrices go for XNNPACK's kernels if nothing else is asked for: of the blocks; embedding and head."""
USUAL = 512
"""Tokens that a program's cache holds, if nothing is said and the data need no more."""
SHARE = 1.5
"""Of what rounded activations cost, as KL: how far XNNPACK's rounding may be from PyTorch's. Two roundings that have
nothing to do with each other are 2 apart; 1e-10 to 0.8 was seen, most where XNNPACK approximates a function (Gemma)."""


@dataclass(frozen=True, slots=True)
class PtePlan:
    """What a program will be.

    Args:
        arithmetic: how its compressed layers compute.
        method: how the model is compressed.
        said: what it says of itself.
    """

    arithmetic: Arithmetic
    method: CompressionMethod
    said: Said


def plan_pte(
    kind: str,
    prepared: Prepared,
    method: CompressionMethod,
    folder: Path,
    *,
    grid: bool,
    context: int | None = None,
) -> PtePlan:
    """Find out before the work whatever the end of it would refuse.

    Args:
        kind: of `ARITHMETIC`.
        prepared: model, data.
        method: how it is going to be compressed.
        folder: where it will go.
        grid: whether its grid was asked for; else it becomes one that the arithmetic has kernels for.
        context: tokens that the cache holds; if nothing, what the data need, and `USUAL` at least.

    Raises:
        ConfigError, ModelError, MissingExtraError: as `refuse_for_pte`, and for a context that the model has not.
        OutputError: if the folder holds another model.
    """
    model, arithmetic = prepared.backbone.model, ARITHMETIC[kind]
    refuse_for_graph(kind, prepared, folder)
    if model.dtype != torch.float32:
        what = f"a program's floats are float32, this model is held in {model.dtype}"
        raise ConfigError(what, where="model.dtype", hint="--set model.dtype=float32")
    if arithmetic.rounds:
        known = method.grid if grid else method.grid and BLOCKS
        # XNNPACK keeps the scales of groups in bf16: solved so, they are the file's.
        named = INTEGERS.get(f"{known.name}{BRAIN}", known) if known and known.high == 7 else known
        method = replace(method, grid=named, embeddings=method.embeddings and OUTSIDE)
    refuse_for_pte(model, placement(model, method), arithmetic)
    start = prepared.backbone.tokenizer.bos_token_id
    return PtePlan(arithmetic, method, Said(_context(prepared, context), start, prepared.ends))


def _context(prepared: Prepared, asked: int | None) -> int:
    """Return how many tokens the cache holds.

    Raises:
        ConfigError: if the model reads no text so long, or it is no text.
    """
    most = getattr(prepared.backbone.model.config, "max_position_embeddings", None)
    if asked is not None and (asked < 2 or (most is not None and asked > most)):
        words = f"from 2 to the model's {most:,}" if most else "at least 2"
        raise ConfigError(f"a cache of {asked:,} tokens", where="--context", hint=words)
    found = asked or max(USUAL, needed_context(prepared))
    return found if most is None else min(found, int(most))


def compress_to_pte(
    model: PreTrainedModel,
    plan: PtePlan,
    folder: Path,
    prepared: Prepared,
    listener: Listener,
    scratch: Path | None = None,
) -> GraphChecked:
    """Compress a model in place and write it for ExecuTorch: as `compress_to_graph`.

    Raises:
        ConfigError, DataError, OutputError: as `compress_to_graph`.
        ModelError, VerifyError: as `write_pte` and `compare_in_executorch`.
    """
    return compress_to_graph(
        model, plan.method, folder, prepared, listener, scratch,
        name=FILE,
        write=lambda quantised, file: write_pte(model, quantised, file, plan.said, plan.arithmetic),
        compare=lambda quantised, file, texts: compare_in_executorch(
            file, model, quantised, texts, plan.arithmetic, plan.said.context
        ),
    )  # fmt: skip


def compare_in_executorch(
    file: Path,
    model: PreTrainedModel,
    quantised: Mapping[str, QuantisedMatrix],
    texts: Sequence[Sequence[int]],
    arithmetic: Arithmetic,
    context: int,
) -> Compared:
    """Run a program in ExecuTorch, in a process of its own, and compare what it predicts with the model.

    Where activations are rounded, PyTorch rounds them as well; an activation between two levels may still fall to
    another one in XNNPACK, so that the bound is a share of what the rounding itself changes.

    Args:
        file: as `write_pte` makes it.
        model: what it was made from, float32.
        quantised: its compressed matrices.
        texts: token ids; the first `POSITIONS` of them are compared.
        arithmetic: how it was written.
        context: tokens that its cache holds.

    Raises:
        VerifyError: if it cannot be run, or is too far from the model.
        ModelError: if there is no token.
    """
    some = some_of(texts, context)
    plain = predicted(model, some)
    theirs, rounding, alike, close = PteDecoder(file).log_probabilities(some), 0.0, ALIKE, CLOSE
    ours = plain
    if arithmetic.rounds:
        with torch.no_grad(), standing_in(model, quantised, arithmetic.stand_ins()):
            ours = predicted(model, some)
        _, rounding = differences(plain, ours, file)
        alike, close = ALIKE + SHARE * rounding, float("inf")
    gap, divergence = differences(ours, theirs, file)
    if not (gap <= close and divergence <= alike):
        bound = "" if arithmetic.rounds else f", bound {close:g},"
        raise VerifyError(
            f"in ExecuTorch log-probabilities differ by {gap:.2g}{bound} and the KL is {divergence:.2g}, "
            f"bound {alike:.2g}",
            where=file,
        )
    return Compared(gap, divergence, rounding)
