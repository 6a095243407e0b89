"""Divergence of predictions against a plain double-precision loop and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import DataError
from edgetune.measure import divergence as module
from edgetune.measure.divergence import Reference, divergence, log_probabilities, twin

ROWS = [([5, 6, 7, 8, 9], 2), ([3, 4], 1), ([10, 11, 12, 13], 1)]


def batch(rows: list[tuple[list[int], int]]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    labels = ids.masked_fill(mask == 0, IGNORED)
    for index, (_, start) in enumerate(rows):
        labels[index, :start] = IGNORED
    return Batch(ids, mask, labels)


@torch.no_grad()
def replaced(model: PreTrainedModel, noise: float = 0.02) -> None:
    """Give every weight new storage and other values, as compression does."""
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.data = weight.data + noise * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def scores(model: nn.Module, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_that_of_a_plain_loop(
    model: PreTrainedModel, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [scores(model, ids) for ids, _ in ROWS]
    size = 10**9 if kept else 0  # what the weights seem to take decides which is kept
    monkeypatch.setattr(torch.Tensor, "element_size", lambda _: size)
    reference = Reference(model, [batch(ROWS[:2]), batch(ROWS[2:])])
    monkeypatch.undo()
    replaced(model)
    found = reference.of(model)
    each, said, agreed = list[float](), list[float](), 0
    for p, (ids, start) in zip(before, ROWS, strict=True):
        q = scores(model, ids)
        losses = (p.exp() * (p - q)).sum(-1)
        each += losses.tolist()
        said += losses[start - 1 : -1].tolist()
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
    assert found.tokens == len(each) == 11
    assert found.every == pytest.approx(np.mean(each), rel=1e-3)
    assert found.response == pytest.approx(np.mean(said), rel=1e-3)
    assert found.rare == pytest.approx(np.quantile(each, 0.999), rel=1e-3)
    assert found.top_1 == agreed / 11


def test_it_depends_neither_on_batches_nor_on_parts(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = twin(model)
    assert isinstance(other, PreTrainedModel)
    replaced(other)
    whole = Reference(model, [batch(ROWS)])
    monkeypatch.setattr(module, "AT_ONCE", 1)
    alone = Reference(model, [batch(ROWS)])
    assert (len(whole.batches), len(alone.batches)) == (1, 3)
    one, three = whole.of(other), alone.of(other)
    assert one.every == pytest.approx(three.every, rel=1e-4)
    assert one.response == pytest.approx(three.response, rel=1e-4)


def test_a_twin_has_the_same_storage_until_weights_are_replaced(model: PreTrainedModel) -> None:
    second = twin(model)
    own, shared = dict(model.named_parameters()), dict(second.named_parameters())
    assert own.keys() == shared.keys()
    assert all(own[name].data_ptr() == shared[name].data_ptr() for name in own)
    before = log_probabilities(second, batch(ROWS))
    replaced(model)
    assert torch.equal(log_probabilities(second, batch(ROWS)), before)
    assert not torch.equal(log_probabilities(model, batch(ROWS)), before)


def test_a_model_is_not_far_from_itself_and_is_left_as_it_was(model: PreTrainedModel) -> None:
    model.train()
    found = Reference(model, [batch(ROWS)]).of(model)
    assert abs(found.every) < 1e-6
    assert found.top_1 == 1.0
    assert model.training


class Constant(nn.Module):
    """A model that gives every token the same logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: object) -> object:
        class Output:
            logits = self.logits.expand(*input_ids.shape, -1)

        return Output()


def test_two_coins_have_their_closed_form() -> None:
    fair, loaded = Constant(0.0, 0.0), Constant(math.log(3.0), 0.0)  # 1/2 and 3/4
    found = Reference(fair, [batch([([0, 1, 1], 1)])]).of(loaded)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert found.every == pytest.approx(expected, rel=1e-6)
    assert found.response == found.rare == pytest.approx(expected, rel=1e-6)


def test_no_token_is_an_error_and_no_response_is_not() -> None:
    with pytest.raises(DataError, match="no token to compare"):
        divergence(lambda number, one: torch.empty(0), Constant(0.0, 1.0), [])
    assert math.isnan(Reference(Constant(0.0, 1.0), [batch([([0, 1], 2)])]).of(Constant(0.0, 1.0)).response)


def test_hopeless_predictions_are_passed_on() -> None:
    found = Reference(Constant(0.0, 1.0), [batch([([0, 1], 1)])]).of(Constant(math.nan, 0.0))
    assert math.isnan(found.every)
