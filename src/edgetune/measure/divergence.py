"""How far a model's predictions are from those of the model it was made of, where a loss is too coarse to say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import DataError

AT_ONCE = 1 << 24
"""Log-probabilities in memory at a time, of each of the two models; a record that has more is taken alone."""
RARE = 0.999
"""The quantile that shows what a mean hides."""

Predictions = Callable[[int, Batch], torch.Tensor]
"""Log-probabilities of the next token, float32 [tokens, vocabulary], behind every real token of batch number i."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far predictions are from a reference's.

    Args:
        response: mean KL(reference || model) over predictions of response tokens, nats; NaN where there are none.
        every: the same over the predictions behind every token of the records.
        rare: 99.9 % quantile of the latter; of fewer than 1,000 tokens nearly the largest.
        top_1: share of all tokens behind which both have the same likeliest next one, 0 to 1.
        tokens: number of all tokens.
    """

    response: float
    every: float
    rare: float
    top_1: float
    tokens: int


class Reference:
    """Predictions of a model as it is now, to compare with what becomes of it.

    Either its log-probabilities are kept, or a second model of the same weights, whichever is smaller.

    Args:
        model: a causal language model. What changes it afterwards must give its parameters new storage, as compression
            does, or work on a copy: the second model shares the storage of now.
        batches: what is compared later, at least one token in all.
    Cost: one forward pass over the batches now, if 4 x tokens x vocabulary bytes are fewer than those of the weights,
        and that memory; else the memory of the weights, once they are replaced, and a forward pass a comparison.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        vocabulary = _vocabulary(model, batches)
        self.batches = _in_parts(batches, vocabulary)
        """What is compared, in parts of at most AT_ONCE log-probabilities."""
        stored = 4 * vocabulary * sum(int(batch.attention_mask.sum()) for batch in batches)
        kept = stored < sum(weight.numel() * weight.element_size() for weight in model.parameters())
        self._twin = None if kept else twin(model)
        self._kept = [log_probabilities(model, batch) for batch in self.batches] if kept else []

    def __call__(self, number: int, batch: Batch) -> torch.Tensor:
        """Return the log-probabilities behind every real token of a part."""
        return self._kept[number] if self._twin is None else log_probabilities(self._twin, batch)

    def of(self, model: nn.Module) -> Divergence:
        """Return how far a model is from this one; see `divergence`."""
        return divergence(self, model, self.batches)


def twin(model: nn.Module) -> nn.Module:
    """Return a second model on the same storage: changes of shape and replaced parameters of one are not the other's.

    Cost: a copy of the buffers.
    """
    shared: dict[int, object] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()
    }
    return copy.deepcopy(model, shared)


def divergence(reference: Predictions, model: nn.Module, batches: Sequence[Batch]) -> Divergence:
    """Kullback-Leibler divergence of a model's predictions from a reference's, over records.

        KL_t = sum_v p(v | x_<=t) (log p(v | x_<=t) - log q(v | x_<=t)),   p the reference, q the model

    Args:
        reference: p.
        model: q, a causal language model; put into evaluation mode while measured, then back.
        batches: records; padding plays no part. NaN and infinity are passed on.

    Raises:
        DataError: no token at all.
    Cost: one forward pass, and one of the reference if it keeps nothing; three times AT_ONCE numbers and 5 bytes a
        token.
    """
    losses, answers, agreed = list[torch.Tensor](), list[torch.Tensor](), 0
    for number, batch in enumerate(batches):
        p, q = reference(number, batch), log_probabilities(model, batch)
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        losses.append(functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).cpu())
        answers.append(_before_response(batch))
    each, said = (torch.cat(one) if one else torch.empty(0) for one in (losses, answers))
    if not len(each):
        raise DataError("no token to compare predictions on", hint="hold out at least one record")
    each = each.double()
    return Divergence(
        response=float(each[said].mean()),
        every=float(each.mean()),
        rare=float(np.quantile(each.numpy(), RARE)),
        top_1=agreed / len(each),
        tokens=len(each),
    )


@torch.inference_mode()
def log_probabilities(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return log-probabilities of the next token behind every real token, float32 [tokens, vocabulary].

    Args:
        model: a causal language model; put into evaluation mode, then back.
        batch: few enough records that their logits fit into memory three times.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        there = batch.to(device)
        logits = model(input_ids=there.input_ids, attention_mask=there.attention_mask, use_cache=False).logits
    finally:
        model.train(training)
    real: torch.Tensor = logits[there.attention_mask.bool()]
    return real.float().log_softmax(-1)


def _before_response(batch: Batch) -> torch.Tensor:
    """Say of every real token whether a response token follows it, bool [tokens]."""
    follows = torch.zeros_like(batch.labels, dtype=torch.bool)
    follows[:, :-1] = batch.labels[:, 1:] != IGNORED
    return follows[batch.attention_mask.bool()].cpu()


def _in_parts(batches: Sequence[Batch], vocabulary: int) -> list[Batch]:
    return [
        part
        for batch in batches
        for part in batch.split(max(1, AT_ONCE // (batch.input_ids.shape[1] * vocabulary)))
    ]


@torch.inference_mode()
def _vocabulary(model: nn.Module, batches: Sequence[Batch]) -> int:
    """Return how many tokens a model predicts, as its logits of one token say: a head may be padded."""
    if not batches:
        return 1
    first = batches[0]
    device = next(model.parameters()).device
    one, mask = (ids[:1, :1].to(device) for ids in (first.input_ids, first.attention_mask))
    return int(model(input_ids=one, attention_mask=mask, use_cache=False).logits.shape[-1])
