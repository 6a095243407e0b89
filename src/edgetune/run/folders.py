"""From a model to a folder with packed layers: compress, write, read back, and load it in transformers."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from edgetune.compress.method import CompressionMethod
from edgetune.compress.placement import placement
from edgetune.compress.sequential import compress_model
from edgetune.core.errors import ConfigError, MissingExtraError, ModelError, VerifyError
from edgetune.core.events import Listener
from edgetune.core.integers import INTEGERS
from edgetune.export.folders import (
    FOLDER_FORMATS,
    FolderFormat,
    float_layers,
    folder_tensors,
    hold_in,
    refuse_folder,
)
from edgetune.measure.divergence import twin
from edgetune.models.backbone import load_backbone
from edgetune.models.quiet import quiet
from edgetune.models.saving import stored_dtype, write_folder, write_words
from edgetune.recipe.calibration import calibration_of
from edgetune.recipe.prepare import Prepared
from edgetune.run.deploy import refuse_unmerged

USUAL = "int4-g128"
BRAIN = "-bf16"
POSITIONS = 256
"""Tokens on which predictions are compared, at most."""
CLOSE = 1e-4
"""Greatest difference of log-probabilities between two programs that compute with the same weights."""


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What a folder will be.

    Args:
        kind: its format.
        method: how the model is compressed: no embeddings on a grid, scales of the type of the other floats.
        dtype: of the other floats: bfloat16 where the base is stored so, else float16.
        words: where the tokenizer's files are; None where it has to be written anew.
    """

    kind: FolderFormat
    method: CompressionMethod
    dtype: torch.dtype
    words: Path | None


@dataclass(frozen=True, slots=True)
class FolderChecked:
    """What was measured of a folder.

    Args:
        size_bytes: of its weights.
        matrices: packed ones, each equal to the solver's bit for bit when read back.
        gap: greatest difference of log-probabilities in transformers; None where it was not tried.
    """

    size_bytes: int
    matrices: int
    gap: float | None


def plan_folder(kind: str, prepared: Prepared, method: CompressionMethod, *, grid: bool) -> FolderPlan:
    """Find out before the work whatever the end of it would refuse.

    Args:
        kind: of `FOLDER_FORMATS`.
        prepared: model, data.
        method: how it is going to be compressed.
        grid: whether its grid was asked for; else it becomes 4 bits in groups of 128.

    Raises:
        ConfigError, ModelError: as `refuse_folder`, and for a size or a method without a grid.
        MissingExtraError: if transformers could not load the folder here.
    """
    chosen, stored = FOLDER_FORMATS[kind], stored_dtype(prepared.backbone.folder)
    model = prepared.backbone.model
    if prepared.recipe.compression.size is not None:
        raise ConfigError(
            f"a size is kept by grids of GGUF, not by {kind}", where="compression.size", hint="--grid"
        )
    if model.dtype != torch.float32:
        hint = "--set model.dtype=float32; the folder's own type is the base's"
        raise ConfigError(
            f"solved weights do not fit a model held in {model.dtype}", where="model.dtype", hint=hint
        )
    if method.grid is None and not grid:
        raise ConfigError(
            f"{method.name} leaves the weights in float", where=kind, hint="name --grid int4-g128"
        )
    name = method.grid.name if grid and method.grid else USUAL
    if stored == torch.bfloat16 and name + BRAIN in INTEGERS and kind != "gptq":
        name += BRAIN
    method = replace(method, grid=INTEGERS.get(name, method.grid), embeddings=None)
    refuse_folder(chosen, model, placement(model, method))
    if chosen.library is not None and importlib.util.find_spec(chosen.library) is None:
        raise MissingExtraError(
            chosen.name, chosen.name, "Loading such a folder in transformers, to verify it,"
        )
    folder = prepared.backbone.folder
    return FolderPlan(
        chosen,
        method,
        torch.bfloat16 if name.endswith(BRAIN) else torch.float16,
        None if folder.is_file() else folder,
    )


def compress_to_folder(
    model: PreTrainedModel,
    plan: FolderPlan,
    folder: Path,
    prepared: Prepared,
    listener: Listener,
    scratch: Path | None = None,
) -> FolderChecked:
    """Compress a model in place and write the very codes the solver chose; nothing is there unless it was verified.

    Args:
        model: becomes the model that the folder holds.
        plan: as `plan_folder` made it.
        folder: created if missing.
        prepared: calibration sample.
        listener: receives what it is calibrated on, and one event a matrix.
        scratch: a folder for solved blocks, so that a killed compression goes on.

    Raises:
        ConfigError, DataError: as `calibration_of`.
        VerifyError: if the folder, read back, is another model.
        OutputError: if it cannot be written.
    """
    refuse_unmerged(model)
    calibration = calibration_of(prepared) if plan.method.reads else None
    if calibration is not None:
        listener(calibration.event)
    batches = calibration.batches if calibration else []
    quantised = compress_model(model, batches, plan.method, listener, scratch=scratch)
    hold_in(model, quantised, plan.dtype)
    ids = [list(example.input_ids) for example in prepared.calibration_examples]
    checked: list[FolderChecked] = []

    def fill(partial: Path) -> None:
        tensors = folder_tensors(plan.kind, model, quantised, plan.dtype)
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        config: Any = copy.deepcopy(model.config)
        grids = {name: matrix.grid for name, matrix in quantised.items()}
        config.quantization_config = plan.kind.says(grids, float_layers(model, grids))
        config.dtype = plan.dtype
        config.architectures = [type(model).__name__]
        config.save_pretrained(partial)
        write_words(partial, prepared.backbone.tokenizer, plan.words)
        size = (partial / "model.safetensors").stat().st_size
        compare_folder(partial, model)
        dense = {name: plan.dtype for name, grid in grids.items() if grid.tied}
        gap = None if plan.kind.library is None else compare_in_transformers(partial, model, ids, dense)
        checked.append(FolderChecked(size, len(quantised), gap))

    write_folder(folder, fill)
    return checked[0]


def compare_folder(folder: Path, model: PreTrainedModel) -> None:
    """Read a folder with this package's own reader: every weight must be the model's, bit for bit.

    Raises:
        VerifyError: naming the first weight that is not.
    """
    found = dict(load_backbone(folder).model.named_parameters())
    for name, weight in model.named_parameters():
        if name not in found or not torch.equal(found[name].float(), weight.detach().cpu().float()):
            raise VerifyError("the folder holds another weight than the model has", where=f"{folder}: {name}")


@torch.no_grad()
def compare_in_transformers(
    folder: Path, model: PreTrainedModel, ids: list[list[int]], dense: Mapping[str, torch.dtype]
) -> float:
    """Load a folder as anybody would and compare what it predicts with the model.

    Args:
        folder: a model folder.
        model: what it was made from, float32.
        ids: texts; some are compared.
        dense: parameter name to the type that the library rounds it to where layers have to be loaded unpacked, for it
            loads no zero points otherwise (transformers 5.23, compressed-tensors 0.20); empty where nothing is rounded.

    Returns:
        The greatest difference of log-probabilities.

    Raises:
        VerifyError: if the folder cannot be loaded, or differs by more than `CLOSE`.
    """
    texts = _some(ids)
    if not texts:
        raise ModelError("no token to compare log-probabilities on", where=folder)
    ours = [_predicted(_rounded(model, dense), text) for text in texts]
    more = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dense else {}
    try:
        # The library draws bars of its own, and warns of a setting that is meant so.
        with quiet(), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **more
            )
            theirs = [_predicted(loaded.eval(), text) for text in texts]
    except Exception as error:  # the libraries raise many unrelated types
        raise VerifyError(f"transformers cannot load the folder: {str(error)[:300]}", where=folder) from error
    gap = max(float((here - there).abs().max()) for here, there in zip(ours, theirs, strict=True))
    if not gap <= CLOSE:
        raise VerifyError(
            f"in transformers log-probabilities differ by {gap:.2g}, bound {CLOSE:g}", where=folder
        )
    return gap


def _rounded(model: PreTrainedModel, dense: Mapping[str, torch.dtype]) -> Any:
    """Return a model with some of its parameters rounded to a type; the model itself where there are none."""
    if not dense:
        return model
    other: Any = twin(model)
    for name, parameter in other.named_parameters():
        if name in dense:
            parameter.data = parameter.data.to(dense[name]).to(parameter.dtype)
    return other


def _predicted(model: Any, ids: list[int]) -> torch.Tensor:
    """Return log-probabilities of a text, float32 [tokens, vocabulary]."""
    place = next(model.parameters()).device
    found: torch.Tensor = model(torch.tensor([ids], device=place)).logits.float().log_softmax(-1).cpu()
    return found


def _some(ids: list[list[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    left = POSITIONS
    for one in ids:
        if left > 0 and one:
            found.append(one[:left])
            left -= len(found[-1])
    return found
