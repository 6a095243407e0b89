"""A decoder as an ExecuTorch program with its keys and values inside, compressed layers on the solver's codes."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from edgetune.core.errors import MissingExtraError, ModelError, VerifyError
from edgetune.core.quantised import BlockGrid, QuantisedMatrix
from edgetune.export.pte_layers import Arithmetic
from edgetune.export.standing_in import standing_in

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
"""`model_type` of what was compared in ExecuTorch: at once, in steps with a cache, and beyond a window."""
LIBRARY = "executorch"
LOUD = ("torch", "torchao", "executorch", "root")
"""Loggers that tell of libraries and kernels that are not there."""
TRACED = 3
"""Tokens while the program is traced: not 0 or 1, which would be taken for constants."""
PADDING = 4096
"""Bytes by which constants may be aligned, at most."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a program says of itself, to whatever runs it.

    Args:
        context: tokens that its cache holds, at least 2.
        start: id that texts begin with; None for none.
        ends: ids that end an answer.
    """

    context: int
    start: int | None
    ends: Sequence[int]

    def methods(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the program's constant methods by name.

        Source: `get_llm_metadata` and `get_eos_ids` of ExecuTorch's llm runner; optimum-executorch's exporter.
        """
        config = model.config
        found: dict[str, Any] = {
            "get_max_seq_len": self.context,
            "get_max_context_len": self.context,
            "get_max_batch_size": 1,
            "use_kv_cache": True,
            "use_sdpa_with_kv_cache": False,
            "enable_dynamic_shape": True,
            "get_vocab_size": int(config.vocab_size),
            "get_n_layers": int(config.num_hidden_layers),
            "get_eos_ids": [int(one) for one in self.ends],
        }
        return found | ({} if self.start is None else {"get_bos_id": int(self.start)})


class _Decoder(nn.Module):
    """A decoder with a cache of its own, whose tensors are buffers that the program changes."""

    def __init__(self, model: PreTrainedModel, context: int) -> None:
        super().__init__()
        self.model = model
        cache: Any = StaticCache(config=model.config, max_cache_len=context)
        # A layer with a window keeps less than the mask asks of it; masks cut off what is beyond a window.
        cache.layers = [StaticLayer(context) for _ in cache.layers]
        call: Any = model
        call(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
        cache.reset()
        for index, layer in enumerate(cache.layers):
            for name in ("keys", "values", "cumulative_length"):
                self.register_buffer(f"{name}_{index}", getattr(layer, name), persistent=False)
        self.cache = cache

    def forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        for layer in self.cache.layers:
            layer.cumulative_length.copy_(places[0])
        found: torch.Tensor = model(
            input_ids=ids, position_ids=places[None], past_key_values=self.cache, use_cache=True
        ).logits
        return found


def refuse_for_pte(model: PreTrainedModel, grids: Mapping[str, BlockGrid], arithmetic: Arithmetic) -> None:
    """Refuse what could not be written or run, from names, shapes and settings alone.

    Args:
        model: what is going to be compressed.
        grids: where its matrices will be.
        arithmetic: how its layers will compute.

    Raises:
        ModelError: for a family that was not compared.
        ConfigError: for a grid without a kernel.
        MissingExtraError: if the library is missing.
    """
    family = str(getattr(model.config, "model_type", ""))
    if family not in FAMILIES:
        raise ModelError(
            f"{family!r} was never compared in ExecuTorch; these were: {', '.join(sorted(FAMILIES))}",
            where=f"--format {arithmetic.name}",
            hint="write GGUF",
        )
    for name, grid in grids.items():
        arithmetic.refuse(grid, name)
    refuse_without_executorch()


def refuse_without_executorch() -> None:
    """Refuse to begin without the library.

    Raises:
        MissingExtraError: if it is not installed.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise MissingExtraError(LIBRARY, LIBRARY, "Writing a .pte, and running it to verify it,")


@torch.no_grad()
def write_pte(
    model: PreTrainedModel,
    quantised: Mapping[str, QuantisedMatrix],
    file: Path,
    said: Said,
    arithmetic: Arithmetic,
) -> None:
    """Write a decoder as an ExecuTorch program, and prove that it holds the solver's codes.

        forward(input_ids int64 [1, n], cache_position int64 [n]) -> logits float32 [1, n, vocabulary],   n <= context

    Keys and values are inside: a call at place 0 begins a text, one at place p goes on behind p tokens. What XNNPACK
    has kernels for is its, the rest ExecuTorch's own.

    Args:
        model: float32, with the weights that the codes mean.
        quantised: parameter name to matrix; everything else stays float32.
        file: the program, `.pte`.
        said: what it says of itself.
        arithmetic: how compressed layers compute.

    Raises:
        ModelError: if torch cannot trace the model, or ExecuTorch lower it.
        VerifyError: as `compare_program`.
    Cost: half a minute for a small model on a shared core; time grows with the layers.
    Source: inputs and cache as in `TorchExportableModuleWithStaticCache` of transformers, so that ExecuTorch's own
        runner for language models runs the file.
    """
    attention, place = model.config._attn_implementation, next(model.parameters()).device
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    anything: Any = model
    try:
        anything.to("cpu")
        model.requires_grad_(False)  # tracing would record a backward pass
        model.set_attn_implementation("eager")
        with _silence(), standing_in(model, quantised, arithmetic.stand_ins()):
            file.write_bytes(_lowered(model, said))
    except Exception as error:  # torch and executorch raise many unrelated types
        what = f"torch and ExecuTorch cannot make a program of this model: {str(error)[:300]}"
        raise ModelError(what, where=file) from error
    finally:
        model.set_attn_implementation(attention)
        for parameter, trained in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(trained)
        anything.to(place)
    compare_program(file, quantised, arithmetic)


def _lowered(model: PreTrainedModel, said: Said) -> bytes:
    """Return the program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    tokens = Dim("tokens", min=1, max=said.context)
    traced = torch.export.export(
        _Decoder(model, said.context).eval(),
        (torch.zeros(1, TRACED, dtype=torch.long), torch.arange(TRACED)),
        dynamic_shapes={"ids": {1: tokens}, "places": {0: tokens}},
        strict=True,  # else the buffers of the cache are there twice, and the copies are constants
    )
    lowered = to_edge_transform_and_lower(
        traced,
        partitioner=[XnnpackPartitioner()],
        constant_methods=said.methods(model),
        compile_config=EdgeCompileConfig(_check_ir_validity=False),  # `embedding_4bit` is no core operator
    )
    return bytes(lowered.to_executorch().buffer)


def compare_program(file: Path, quantised: Mapping[str, QuantisedMatrix], arithmetic: Arithmetic) -> None:
    """Read a program again: codes, scales and zero points of every matrix must be in it, bit for bit.

    Programs keep no names of weights; which matrix is used where, the comparison of predictions shows.

    Args:
        file: as `write_pte` makes it.
        quantised: parameter name to matrix.
        arithmetic: how it was written.

    Raises:
        VerifyError: if the file cannot be read, or naming the first matrix that is not there.
    """
    there = _constants(file)
    for name, matrix in quantised.items():
        if not any(all(_is_there(one, there) for one in parts) for parts in arithmetic.stored(matrix)):
            raise VerifyError("the file holds other codes than the solver chose", where=f"{file}: {name}")


def _is_there(wanted: bytes, there: Mapping[int, Sequence[bytes]]) -> bool:
    """Say whether a constant is among those of a program; behind some there are zeros up to where the next begins."""
    return any(
        one.startswith(wanted) and not any(one[len(wanted) :])
        for size, ones in there.items()
        if len(wanted) <= size < len(wanted) + PADDING
        for one in ones
    )


def _constants(file: Path) -> dict[int, list[bytes]]:
    """Return the constants of a program by their size.

    Raises:
        VerifyError: if it is no program.
    """
    try:
        with _silence():
            from executorch.exir._serialize._program import deserialize_pte_binary

            read = deserialize_pte_binary(file.read_bytes())
    except Exception as error:  # whatever a flatbuffer of other bytes makes of itself
        raise VerifyError(f"this is no ExecuTorch program: {str(error)[:300]}", where=file) from error
    found = [bytes(one.storage) for one in read.program.constant_buffer]
    if read.named_data is not None:
        found += [bytes(one) for one in read.named_data.buffers]
    sizes: dict[int, list[bytes]] = {}
    for one in found:
        sizes.setdefault(len(one), []).append(one)
    return sizes


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the libraries from telling of what they do without, within a block."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
