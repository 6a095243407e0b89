"""Which reader serves which module: the narrowest that can form what the module reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from edgetune.tune.parts import reads_in_parts
from edgetune.tune.readers import (
    NORMS,
    EmbeddingReader,
    LinearReader,
    NormReader,
    Reader,
    Reads,
    VectorReader,
)


def attach(owner: Reads, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[Reader]:
    """Yield a reader for every module that owns some of the parameters.

    Args:
        owner: forms what the readers ask for.
        model: its modules are read through the readers from now on, until they are closed.
        parameters: by name.
    """
    names = {id(weight): name for name, weight in parameters.items()}
    for module in model.modules():
        own = {key: names[id(value)] for key, value in module._parameters.items() if id(value) in names}
        if own:
            yield from attach_one(owner, module, own)


def attach_one(owner: Reads, module: nn.Module, own: dict[str, str]) -> Iterator[Reader]:
    """Yield the reader of one module.

    Args:
        owner: forms what the reader asks for.
        module: is read through it from now on.
        own: parameter names in the model by names in the module.
    """
    if not module._modules and all(
        len(weight.shape) == 1 and weight.numel() for weight in map(module.get_parameter, own)
    ):
        yield (NormReader if type(module) in NORMS else VectorReader)(owner, module, own)
    elif not (owner.alignment and "weight" in own and reads_in_parts(module)):
        yield Reader(owner, module, own)
    elif isinstance(module, nn.Embedding):
        yield EmbeddingReader(owner, module, own)
    else:
        yield LinearReader(owner, module, own)
