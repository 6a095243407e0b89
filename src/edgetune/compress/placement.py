"""Where every matrix of a model will go, known before anything is compressed."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks, matrices_in
from edgetune.compress.method import CompressionMethod
from edgetune.core.quantised import BLOCK, BlockGrid


def placement(model: PreTrainedModel, method: CompressionMethod) -> dict[str, BlockGrid]:
    """Return the grid of each matrix that `compress_model` will put on one.

    Args:
        model: any Hugging Face decoder; nothing of it but shapes is read.
        method: what will be done.

    Returns:
        parameter name to grid; the keys of what `compress_model` returns. Everything else stays in float.

    Raises:
        ModelError: if the model is no decoder.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, BlockGrid] = {}
    if method.embeddings is not None:
        for module in (model.get_input_embeddings(), cast(Any, model).get_output_embeddings()):
            weight = getattr(module, "weight", None)
            if weight is not None and weight.shape[1] % BLOCK == 0:
                found[names[id(weight)]] = method.embeddings
    for block in decoder_blocks(model):
        linears, _ = matrices_in(block, names)
        found |= dict.fromkeys(linears, method.grid)
    return found
