"""Gradients along skip connections alone: paths from weights to the loss that pass no matrix but the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.blank import is_blank

MATRICES = (nn.Linear, Conv1D)
"""Modules that multiply by a matrix."""


@contextmanager
def skips_alone(model: nn.Module) -> Iterator[None]:
    """While entered, no gradient passes through a linear layer other than the head.

        h_L = h_0 + sum_l B_l x_l,   x_l taken as constants:   dL/dB_l = sum_t e_t x_lt^T,   e_t = dL/dh_Lt

    A layer's own matrix gets its gradient, what it was given gets none. So only matrices that write into the residual
    stream get one, and the error e of the last hidden state reaches them over the skip connections, through the norms
    behind them where a model has some.

    Args:
        model: a causal language model; its layers are hooked meanwhile.
    Cost: nothing beside what autograd keeps of each layer that writes.
    """
    hooks = [one.register_forward_pre_hook(_apart, with_kwargs=True) for one in _inner(model).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def rows_alone(model: nn.Module, said: torch.Tensor) -> Iterator[None]:
    """While entered, what a gradient needs is kept of the positions whose error is not 0, and of no others.

    A tensor is known by its shape: [records, tokens, ...], or [records tokens, n] where no parameter has that many rows
    or columns, since a copy of a parameter (of another type, or plus 1) has its shape. All others are kept whole.

    Args:
        model: its parameters are kept as they are.
        said: bool [records, tokens], true where a loss looks at what the model says there.
    Cost: a copy of those rows, and of one tensor at a time zeros in place of the others.
    """
    (records, tokens), places = said.shape, said.flatten().nonzero()[:, 0]
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    shapes = [weight.shape for weight in model.parameters()]
    flat = all(records * tokens not in shape for shape in shapes)
    deep = all(shape[:2] != (records, tokens) for shape in shapes)

    def pack(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Size | None]:
        shape = tensor.shape
        by_row = flat and len(shape) == 2 and shape[0] == records * tokens
        by_row = by_row or (deep and len(shape) > 2 and shape[:2] == (records, tokens))
        if not by_row or tensor.untyped_storage().data_ptr() in own:
            return tensor, None
        return tensor.reshape(records * tokens, -1)[places], shape

    def unpack(kept: tuple[torch.Tensor, torch.Size | None]) -> torch.Tensor:
        rows, shape = kept
        if shape is None:
            return rows
        whole = rows.new_zeros(records * tokens, rows.shape[1])
        whole[places] = rows
        return whole.view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def writers(model: nn.Module, ids: torch.Tensor) -> tuple[str, ...]:
    """Return the linear layers that write into the residual stream, by the names of their modules.

    Those are the layers whose output reaches the logits through no other layer but the head: the last ones of attention
    and of the feed-forward network, whatever a family calls them.

    Args:
        model: a causal language model of which gradients can be taken.
        ids: int64 [records, tokens], on the model's device.
    Cost: a forward pass and a small backward pass.
    """
    given: dict[str, torch.Tensor] = {}

    def cut(name: str) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            given[name] = output.detach().requires_grad_()
            return given[name]

        return hook

    hooks = [one.register_forward_hook(cut(name)) for name, one in _inner(model).items()]
    try:
        with torch.enable_grad(), _stood_in(model):
            logits = model(input_ids=ids, use_cache=False).logits
            reached = torch.autograd.grad(
                logits.float().square().mean(), list(given.values()), allow_unused=True
            )
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(name for name, gradient in zip(given, reached, strict=True) if gradient is not None)


@contextmanager
def _stood_in(model: nn.Module) -> Iterator[None]:
    """While entered, layers whose matrix the model does not hold give something that hangs on what they are given."""
    blank: list[Any] = [one for one in model.modules() if isinstance(one, MATRICES) and is_blank(one.weight)]

    def stand(width: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x.mean(-1, keepdim=True).expand(*x.shape[:-1], width).contiguous()

    try:
        for one in blank:
            one.forward = stand(one.nf if isinstance(one, Conv1D) else one.out_features)
        yield
    finally:
        for one in blank:
            one.__dict__.pop("forward", None)


def head_of(model: nn.Module) -> nn.Module | None:
    """Return the module that makes logits, None if the model has none of its own."""
    find: Callable[[], nn.Module | None] = getattr(model, "get_output_embeddings", lambda: None)
    return find()


def _inner(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a model but its head, by name."""
    head = head_of(model)
    return {name: one for name, one in model.named_modules() if isinstance(one, MATRICES) and one is not head}


def _apart(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_alone(one) for one in args), {key: _alone(one) for key, one in kwargs.items()}


def _alone(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
