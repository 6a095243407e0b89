"""A language model taken apart before its head, so that logits exist a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch

LOGITS_AT_ONCE = 1 << 22
"""Logits of one model in memory at a time, 16 MB; several copies of them are made."""
FEWEST = 16
"""Positions that a head is given at least, so that a large vocabulary is not multiplied row by row."""
SAME = 1e-3
"""Greatest difference of two computations of one logit, relative to the largest."""

Rows = tuple[torch.Tensor, ...]
"""What is known of positions, each [tokens, ...]."""


def positions(batch: Batch, *, all_tokens: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (record, place) of every position behind which a response token follows, both int64 [tokens].

    Args:
        batch: token ids with labels.
        all_tokens: positions behind which any real token follows instead.
    """
    said = batch.labels[:, 1:] != IGNORED
    rows, columns = torch.nonzero(batch.attention_mask[:, 1:].bool() if all_tokens else said, as_tuple=True)
    return rows, columns


class Apart:
    """A causal language model whose head is called by itself.

        logits = after(head(hidden)),   after: what a model does to its logits, from its configuration

    Whether the parts make what the whole makes is tried on four tokens at the first use; a model that cannot be taken
    apart (a head that is no module of its own, other scaling) gives its logits whole.

    """

    def __init__(self) -> None:
        self.width = 1
        """Tokens that the head tells apart, once `rows` was called."""
        self._after: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._tried = False

    def rows(self, model: nn.Module, batch: Batch, where: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return what the head reads at some positions, [tokens, width]; their logits if it cannot be called alone.

        Args:
            model: is called once.
            batch: token ids and mask.
            where: `positions`.
        Cost: a forward pass, with logits of one position a record.
        """
        if self.comes_apart(model, batch):
            return self._hidden(model, batch)[where]
        logits = _logits(model, batch)
        self.width = logits.shape[-1]
        return logits[where]

    def logits(self, model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return logits of what `rows` gave, in float32 at least, [tokens, vocabulary]."""
        alone = self._after is not None and _head(model) is not None
        found = self._after(_head(model)(rows)) if self._after is not None and alone else rows
        return found if found.dtype == torch.float64 else found.float()

    @torch.no_grad()
    def comes_apart(self, model: nn.Module, batch: Batch) -> bool:
        """Say whether the head can be called by itself; the first time that is tried on a part of the batch.

        Cost: at the first use three passes of four tokens.
        """
        if _head(model) is None:
            return False
        if not self._tried:
            few, after = _few(batch), after_head(getattr(model, "config", None))
            hidden, whole = _captured(model, few), _logits(model, few).float()
            if hidden is not None and _close(after(_head(model)(hidden)).float(), whole):
                self._after = after
            self._tried, self.width = True, whole.shape[-1]
        return self._after is not None

    def _hidden(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        found = _captured(model, batch)
        if found is None:  # the trial saw it called
            raise RuntimeError("the head was not called")
        return found


def by_chunks(one: Callable[..., torch.Tensor], rows: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Apply a function to a few rows at a time.

    Args:
        one: makes [tokens] of as many rows of every tensor.
        rows: tensors [tokens, ...].
        width: numbers that it makes of a row.
    Cost: LOGITS_AT_ONCE numbers, times the copies that `one` makes; with gradients as many as all rows make.
    """
    return torch.cat([one(*part) for part in _chunks(rows, width)])


def mean_by_chunks(
    one: Callable[..., torch.Tensor], rows: Sequence[torch.Tensor], width: int, count: int
) -> torch.Tensor:
    """Sum a function of a few rows at a time; a chunk's gradients are taken while what it makes is there.

        L = sum_t one(rows_t) / count,   dL/drows, dL/dw chunk by chunk;   backward multiplies them by dL'/dL

    w are the leaves that `one` itself reads, a head's weights for example. What it reads may hang on no other graph.

    Args:
        one, rows, width: as `by_chunks`.
        count: what the sum is divided by, at least 1.

    Returns:
        A scalar, which can be passed backward through once.

    Raises:
        RuntimeError: when it is passed backward through again.
    Cost: as `by_chunks` without gradients, and with them the same once more; of every leaf's gradient one, or two where
        there are several chunks.
    Source: the gradient in the forward pass: fused linear cross-entropy of Liger Kernel, Hsu et al. 2024,
        arXiv:2410.10989.
    """
    if not torch.is_grad_enabled():
        return by_chunks(one, rows, width).sum() / count
    taken = _Taken(len(rows))
    losses = [taken.loss(one, part, 1 / count) for part in _chunks(rows, width)]
    return taken.hung(torch.cat(losses).sum() / count, rows)


class _Taken:
    """Gradients of a sum by what its parts are given, and by the leaves that they read."""

    def __init__(self, many: int) -> None:
        self._errors: list[list[torch.Tensor]] = [[] for _ in range(many)]
        self._leaves: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def loss(
        self, one: Callable[..., torch.Tensor], part: Sequence[torch.Tensor], share: float
    ) -> torch.Tensor:
        """Return what a function makes of some rows, and take the gradients of `share` times its sum."""
        given = [row.detach().requires_grad_(row.requires_grad) for row in part]
        found = one(*given)
        if found.requires_grad:
            wanting = [index for index, row in enumerate(given) if row.requires_grad]
            inputs = [given[index] for index in wanting]
            leaves = [leaf for leaf in _leaves(found) if all(leaf is not row for row in inputs)]
            gradients = torch.autograd.grad(found, [*inputs, *leaves], torch.full_like(found, share))
            for index, error in zip(wanting, gradients, strict=False):
                self._errors[index].append(error)
            for leaf, gradient in zip(leaves, gradients[len(inputs) :], strict=True):
                before = self._leaves.get(id(leaf))
                self._leaves[id(leaf)] = (leaf, gradient if before is None else before[1].add_(gradient))
        return found.detach()

    def hung(self, value: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum, hung on what its gradients are of."""
        pairs = [(row, torch.cat(errors)) for row, errors in zip(rows, self._errors, strict=True) if errors]
        pairs += self._leaves.values()
        if not pairs:
            return value
        inputs, gradients = zip(*pairs, strict=True)
        hung: torch.Tensor = _Known.apply(value, gradients, *inputs)  # type: ignore[no-untyped-call]
        return hung


class _Known(torch.autograd.Function):
    """A scalar whose gradients are known."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: Sequence[torch.Tensor], *_: torch.Tensor
    ) -> torch.Tensor:
        """Return the value; the gradients are no saved tensors, which hooks would look at."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Give the gradients away, so that nobody needs to copy them."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were taken once, and it was passed backward twice")
        if float(outer) != 1:
            gradients = [one.mul_(outer) for one in gradients]
        return None, None, *gradients


def _leaves(found: torch.Tensor) -> list[torch.Tensor]:
    """Return the leaves of a graph that gradients are wanted of."""
    leaves, seen, waiting = list[torch.Tensor](), set[Any](), [found.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting.extend(other for other, _ in node.next_functions)
    return leaves


def _chunks(rows: Sequence[torch.Tensor], width: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield a few rows of every tensor at a time, at least once."""
    each = max(FEWEST, LOGITS_AT_ONCE // width)
    return zip(*(torch.split(row, each) for row in rows), strict=True)


def after_head(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what a model of this configuration does to the output of its head.

    Source: transformers: `final_logit_softcapping` (Gemma 2), `logit_scale` (Cohere), `logits_scaling` (Granite).
    """
    cap, scale = getattr(config, "final_logit_softcapping", None), getattr(config, "logit_scale", None)
    over = getattr(config, "logits_scaling", None)

    def after(logits: torch.Tensor) -> torch.Tensor:
        logits = logits if scale is None else logits * scale
        logits = logits if over is None else logits / over
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return after


def _head(model: nn.Module) -> Any:
    get: Any = getattr(model, "get_output_embeddings", None)
    return get() if get is not None else None


def _captured(model: nn.Module, batch: Batch) -> torch.Tensor | None:
    """Return what the head is given in a forward pass, in which it computes one position; None if it is not called."""
    found = list[torch.Tensor]()

    def hold(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        found.extend(given)
        return tuple(one[:, :1] for one in given)

    handle = _head(model).register_forward_pre_hook(hold)
    try:
        _logits(model, batch)
    finally:
        handle.remove()
    whole = len(found) == 1 and found[0].shape[:2] == batch.input_ids.shape
    return found[0] if whole else None


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits
    return found


def _few(batch: Batch) -> Batch:
    return Batch(batch.input_ids[:1, :4], batch.attention_mask[:1, :4], batch.labels[:1, :4])


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape:
        return False
    return bool((left - right).abs().max() <= SAME * right.abs().max().clamp(min=1))
