"""A decoder as an ONNX graph with its keys and values as inputs and outputs, compressed layers on their codes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from edgetune.core.errors import MissingExtraError, ModelError, VerifyError
from edgetune.core.nbits import is_held, refuse_for_nbits
from edgetune.core.quantised import BlockGrid, QuantisedMatrix
from edgetune.export.onnx_layers import CODES, SCALES, ZEROS, stand_ins
from edgetune.export.standing_in import layers_of, standing_in

FAMILIES = frozenset(
    (
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
        "starcoder2",
    )
)
"""`model_type` of what was compared in ONNX Runtime: whole, in steps with a cache, and in a padded batch."""
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
"""Of the standard operators; ONNX Runtime 1.17 and later has them."""
ROOT = "model"
"""What names of the graph's weights begin with: the attribute of `_Decoder`."""
BATCH, TOKENS, PAST = 2, 5, 3
"""Sizes while the graph is traced: none is 0 or 1, which would be taken for constants."""


class _Decoder(nn.Module):
    """A decoder whose cache is a list of tensors, two for each layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model: Any = self.model
        cache: Any = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        return out.logits, [one for layer in cache.layers for one in (layer.keys, layer.values)]


def refuse_for_onnx(model: PreTrainedModel, grids: Mapping[str, BlockGrid]) -> None:
    """Refuse what could not be written or run, from names, shapes and settings alone.

    Args:
        model: what is going to be compressed.
        grids: where its matrices will be.

    Raises:
        ModelError: for a family that was not compared.
        ConfigError: for a grid without a kernel.
        MissingExtraError: if a library is missing.
    """
    family = str(getattr(model.config, "model_type", ""))
    if family not in FAMILIES:
        raise ModelError(
            f"{family!r} was never compared in ONNX Runtime; these were: {', '.join(sorted(FAMILIES))}",
            where="--format onnx",
            hint="write GGUF",
        )
    for name, grid in grids.items():
        refuse_for_nbits(grid, name)
    refuse_without_onnx()
    if not hasattr(torch.onnx, "ops"):
        raise ModelError(
            "this torch is too old to write such a graph", where=torch.__version__, hint="torch 2.8"
        )


def refuse_without_onnx() -> None:
    """Refuse to begin without the libraries.

    Raises:
        MissingExtraError: naming the first that is not installed.
    """
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(library, "onnx", "Writing ONNX, and running it to verify it,")


@torch.no_grad()
def write_onnx(model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix], file: Path) -> None:
    """Write a decoder as an ONNX file, and prove that it holds the solver's codes.

        input_ids int64 [batch, n], attention_mask int64 [batch, past + n], position_ids int64 [batch, n],
        past_key_values.I.key and .value float32 [batch, heads, past, width]
        -> logits float32 [batch, n, vocabulary], present.I.key and .value [batch, heads, past + n, width]

    Batch, n and past are free; past may be 0. Beyond 2 GB weights go into a file beside it.

    Args:
        model: float32, with the weights that the codes mean.
        quantised: parameter name to matrix; their layers become nodes on the codes, everything else stays float32.
        file: the file, `.onnx`.

    Raises:
        ModelError: if torch cannot trace the model.
        VerifyError: as `compare_codes`.
    Cost: half a minute for a small model on a shared core; time grows with the layers.
    Source: names of inputs and outputs as in Hugging Face's optimum, so that what runs its files runs these.
    """
    state = _state(model)
    attention = model.config._attn_implementation
    with standing_in(model, quantised, stand_ins()):
        model.set_attn_implementation("eager")
        try:
            with _silence():
                program = _trace(model, state)
                for node in program.model.graph.all_nodes():
                    node.metadata_props.clear()  # lines and paths of the source, larger than a small model
                program.save(file)
        except Exception as error:  # torch and onnxscript raise many unrelated types
            raise ModelError(f"torch cannot trace this model: {str(error)[:300]}", where=file) from error
        finally:
            model.set_attn_implementation(attention)
    compare_codes(file, model, quantised)


def compare_codes(file: Path, model: PreTrainedModel, quantised: Mapping[str, QuantisedMatrix]) -> None:
    """Read a file again: every code, scale and zero point must be the solver's, bit for bit.

    Args:
        file: as `write_onnx` makes it.
        model: what it was made from; layers that share a matrix share what is stored.
        quantised: parameter name to matrix.

    Raises:
        VerifyError: naming the first matrix that is another one, or is not there.
    """
    import onnx

    stored = {one.name: one for one in onnx.load(file).graph.initializer}
    layers = layers_of(model, quantised).items()
    there = [(f"{ROOT}.{module}", name) for module, name in layers if f"{ROOT}.{module}.{CODES}" in stored]
    for name, matrix in quantised.items():
        stems = [stem for stem, whose in there if whose == name]
        parts = [[_tensor(stored.get(f"{stem}.{one}")) for one in (CODES, SCALES, ZEROS)] for stem in stems]
        if not parts or not all(is_held(matrix, codes, scales, zeros) for codes, scales, zeros in parts):
            raise VerifyError("the file holds other codes than the solver chose", where=f"{file}: {name}")


def _tensor(stored: Any) -> torch.Tensor | None:
    """Return an initialiser as a tensor; None for none."""
    if stored is None:
        return None
    from onnx import numpy_helper

    found = np.ascontiguousarray(numpy_helper.to_array(stored))
    brain = found.dtype.name == "bfloat16"
    return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16) if brain else torch.from_numpy(found)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter from telling of libraries that it does without, within a block."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _state(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return keys and values of one token, two tensors [1, heads, 1, width] for each layer.

    Raises:
        ModelError: if the model keeps something else.
    """
    call: Any = model
    one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    cache: Any = call(one, use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    if not layers or not all(isinstance(layer, DynamicLayer) for layer in layers):
        raise ModelError("this model keeps no keys and values by layers", where=type(model).__name__)
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def _trace(model: PreTrainedModel, state: list[torch.Tensor]) -> Any:
    """Return the graph, an ONNXProgram."""
    place = state[0].device
    ids = torch.zeros(BATCH, TOKENS, dtype=torch.long, device=place)
    past = [tensor.expand(BATCH, -1, PAST, -1).clone() for tensor in state]
    mask = torch.ones(BATCH, PAST + TOKENS, dtype=torch.long, device=place)
    places = torch.arange(PAST, PAST + TOKENS, device=place).expand(BATCH, -1).clone()
    batch, tokens, before, whole = (Dim.DYNAMIC,) * 4
    kinds = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
    return torch.onnx.export(
        _Decoder(model).eval(),
        (ids, mask, places, past),
        dynamo=True,
        dynamic_shapes={
            "ids": {0: batch, 1: tokens},
            "mask": {0: batch, 1: whole},
            "places": {0: batch, 1: tokens},
            "past": [{0: batch, 2: before} for _ in past],
        },
        opset_version=OPSET,
        optimize=False,  # it would fold scales into float32, and ONNX Runtime folds by itself when it loads
        input_names=[
            "input_ids",
            "attention_mask",
            "position_ids",
            *(f"past_key_values.{one}" for one in kinds),
        ],
        output_names=["logits", *(f"present.{one}" for one in kinds)],
        verbose=False,
    )
