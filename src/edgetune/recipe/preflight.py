"""Before the first forward pass: plan the file at the end, and try in llama.cpp what is going to be trained on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgetune.compress.masking import sparsity_named
from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import placement
from edgetune.core.errors import ConfigError, EdgetuneError, ModelError, OutputError, VerifyError
from edgetune.core.events import Event
from edgetune.core.export_events import ExportPlanned, ExportRefused
from edgetune.core.integers import grid_named
from edgetune.core.pretokenizer import PRE_TOKENIZERS, UnknownPreTokenizerError
from edgetune.core.quantised import BlockGrid
from edgetune.data.records import Record
from edgetune.export.parity import compare_texts, vocabulary_in_llama_cpp
from edgetune.export.plan import ExportPlan, plan_export
from edgetune.export.speech import Speech
from edgetune.methods.catalogue import compression_method
from edgetune.recipe.allotting import budget_of
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.rehearsal import chosen_records, rehearse, speech_of, texts_of

CANDIDATE_CHARACTERS = 400_000
"""The same for each pre-tokenizer that is tried where none could be identified."""

SPARE_BYTES = 16 << 20
"""What a run writes beside its model file, generously."""


def compression_of(recipe: Recipe) -> CompressionMethod:
    """Return the compression method of a recipe, with what the recipe sets of it.

    Raises:
        ConfigError: if there is none of that name, or a setting does not fit it.
    """
    section = recipe.compression
    method = compression_method(section.name)
    mask = method.mask
    if section.sparsity is not None:
        if mask is None:
            raise ConfigError(
                f"{section.name} prunes nothing",
                where="compression.sparsity",
                hint="name sparsegpt, wanda, magnitude or joint as compression.name",
            )
        mask = replace(mask, sparsity=sparsity_named(str(section.sparsity)))
    wanted = {
        "swaps": section.swaps,
        "polish": section.polish,
        "aim_dense": section.aim_dense,
        "static_order": section.static_order,
    }
    said: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    return replace(
        method, grid=method.grid if section.grid is None else grid_named(section.grid), mask=mask, **said
    )


def plan_for(
    prepared: Prepared,
    method: CompressionMethod | None,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
) -> ExportPlan:
    """Plan the file of a prepared model without starting anything.

    Args:
        prepared: model, data, prompt.
        method: how it is going to be compressed; None writes it in fp16.
        grids: parameter name to a grid in place of the method's.

    Raises:
        ModelError: if the family, a setting of it or the tokenizer cannot be written so that llama.cpp agrees.
    """
    return _plan(prepared, method, speech_of(prepared), prepared.recipe.export.pre_tokenizer, grids)


def preflight(
    prepared: Prepared,
    path: Path,
    method: CompressionMethod | None,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
) -> tuple[ExportPlan, ExportPlanned]:
    """Find out in seconds whatever the end of a run would refuse.

    The plan is made; there is room for the file; every record fits the context in which the file is exact; and
    llama.cpp, given the planned vocabulary, makes of the training texts the ids that are trained on, ends answers
    where they end, and renders conversations to the same ids. Of long data, the server's sample and the held-out
    records come first, then records of the devices in random order.

    Args:
        prepared: model, data, prompt.
        path: where the file will be.
        method: how the model is going to be compressed; None writes it in fp16.
        grids: parameter name to a grid in place of the method's, or of fp16.

    Returns:
        What is going to be written, and an event that says so.

    Raises:
        ModelError: if the file would not agree with the model; says what to do.
        ConfigError: if records do not fit the context.
        DataError: if the text to calibrate on cannot be read, or has no token.
        OutputError: if there is no room for the file.
        MissingExtraError: if `gguf` or `xllamacpp` is not installed.
    Cost: some seconds, most of it one pass of llama.cpp's tokenizer over at most 2 million characters.
    """
    speech = speech_of(prepared)
    try:
        plan = _plan(prepared, method, speech, prepared.recipe.export.pre_tokenizer, grids)
    except UnknownPreTokenizerError as error:
        raise ModelError(error.what, where=error.where, hint=_advice(prepared, method, speech)) from error
    if method is not None:
        budget_of(prepared, plan, method)
    _check_room(plan, path)
    _check_context(plan, prepared)
    if method is not None and method.reads and prepared.recipe.compression.calibration is not None:
        calibration_of(prepared)  # a file that cannot be read is refused before the run, not at its end
    records, total = chosen_records(prepared)
    with vocabulary_in_llama_cpp(plan) as llama:
        try:
            texts, uncomposed = rehearse(llama, plan, prepared, speech, records)
        except VerifyError as error:
            raise ModelError(
                error.what, where=prepared.backbone.words, hint=_how_to_go_on(prepared)
            ) from error
    return plan, ExportPlanned(
        architecture=plan.architecture,
        file_type=plan.file_type,
        size_bytes=plan.tensor_bytes,
        context=plan.context,
        texts=texts,
        texts_in_all=2 * total,
        composed=uncomposed,
        notes=list(plan.notes),
    )


def needed_context(prepared: Prepared) -> int:
    """Return the tokens that the longest held-out prompt with its answer, or calibration text, takes."""
    answers = [
        one.response_start + prepared.recipe.evaluation.max_new_tokens for one in prepared.held_out_examples
    ]
    texts = [len(one.input_ids) for one in (*prepared.held_out_examples, *prepared.calibration_examples)]
    return max([*answers, *texts]) + 1


def _plan(
    prepared: Prepared,
    method: CompressionMethod | None,
    speech: Speech,
    pre_tokenizer: str | None,
    grids: Mapping[str, BlockGrid] = MappingProxyType({}),
) -> ExportPlan:
    model = prepared.backbone.model
    placed = grids if method is None else placement(model, method, grids)
    return plan_export(model, prepared.backbone.tokenizer, speech, grids=placed, pre_tokenizer=pre_tokenizer)


def _check_room(plan: ExportPlan, path: Path) -> None:
    free = shutil.disk_usage(path.parent).free
    needed = plan.tensor_bytes + SPARE_BYTES
    if free < needed:
        raise OutputError(
            f"the file needs {needed:,} bytes, there are {free:,}", where=path, hint="free some space"
        )


def _check_context(plan: ExportPlan, prepared: Prepared) -> None:
    needed = needed_context(prepared) - 1
    if needed > plan.context:
        raise ConfigError(
            f"a record with its answer has {needed} tokens, llama.cpp computes {plan.context} as this model does",
            where="data.max_tokens",
            hint=f"--set data.max_tokens={plan.context - prepared.recipe.evaluation.max_new_tokens}",
        )


def _advice(prepared: Prepared, method: CompressionMethod | None, speech: Speech) -> str:
    """Try every pre-tokenizer llama.cpp has on the beginning of the data; say which make the same ids."""
    records, left = list[Record](), CANDIDATE_CHARACTERS
    for record in chosen_records(prepared)[0]:
        left -= record.characters
        if left < 0 and records:
            break
        records.append(record)
    texts, fitting = texts_of(prepared, records), list[str]()
    for name in sorted(set(PRE_TOKENIZERS.values())):
        try:
            plan = _plan(prepared, method, speech, name)
            with vocabulary_in_llama_cpp(plan) as llama:
                compare_texts(llama, prepared.backbone.tokenizer, texts, composes=plan.vocabulary.composes)
        except (VerifyError, ModelError):
            continue
        fitting.append(name)
    if not fitting:
        return "none of llama.cpp's makes the same tokens of these records; edgetune tune needs no file"
    known = ", ".join(fitting)
    return f"on {len(texts)} texts {known} make the same tokens: --set export.pre_tokenizer={fitting[0]}"


def _how_to_go_on(prepared: Prepared) -> str:
    name = prepared.method.name
    return f"edgetune federate {name} tunes without a file; --set export.pre_tokenizer=... names another tokenizer"


def look_ahead(
    prepared: Prepared, path: Path, method: CompressionMethod | None, *, file: bool
) -> tuple[ExportPlan | None, Event | None]:
    """Return the plan of a run's file and an event about it.

    Args:
        prepared: model, data, prompt.
        path: where the file will be.
        method: how the model is going to be compressed; None writes it in fp16.
        file: whether the run ends with a file. Without, nothing is refused: where the tuned model could not become a
            file, as far as that is known without llama.cpp, the event says so.

    Raises:
        EdgetuneError: as `preflight`, if a file is wanted.
    """
    if file:
        return preflight(prepared, path, method)
    if prepared.method.target.merges:  # that there is no file of a prefix is no news
        try:
            plan_for(prepared, method)
        except EdgetuneError as error:
            return None, ExportRefused(str(error))
    return None, None
