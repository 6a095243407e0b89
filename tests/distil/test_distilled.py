"""The objective of distillation against the plain formula on whole logits, for every way in which a step is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core import heads
from edgetune.core.batch import IGNORED, Batch
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.core.keys import pool_key
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.distil.objective import Distilled
from edgetune.distil.teacher import ModelTeacher
from edgetune.estimators import Accumulate, Backprop, Jvp, TwoPoint
from edgetune.tune import FullProjected, ProjectedTuned

FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")


def _batch(vocabulary: int = 100) -> Batch:
    """Three records with prompts of 2, 6 and 4 tokens, one of them shorter than the others."""
    ids = torch.randint(0, vocabulary, (3, 10), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, 7:] = 0
    labels[0, 7:] = IGNORED
    for row, start in enumerate((2, 6, 4)):
        labels[row, :start] = IGNORED
    return Batch(ids, mask, labels)


def _plain(kind: JensenShannon, student: Any, teacher: Any, batch: Batch, shared: int = 100) -> torch.Tensor:
    """The mean of the divergence over response tokens, record by record and token by token."""
    found = []
    for row in range(len(batch.input_ids)):
        length = int(batch.attention_mask[row].sum())
        ids = batch.input_ids[row : row + 1, :length]
        ours, theirs = (
            one(input_ids=ids).logits[0, :, :shared].log_softmax(-1) for one in (student, teacher)
        )
        for place in range(length - 1):
            if int(batch.labels[row, place + 1]) != IGNORED:
                found.append(kind(ours[place : place + 1], theirs[place : place + 1])[0])
    return torch.stack(found).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_value_and_gradients_are_those_of_whole_logits(
    tiny_model: Any, family: str, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(heads, "FEWEST", 4)
    student, teacher = tiny_model(family).double(), tiny_model(family, seed=1, hidden=16).double()
    kind, batch = JensenShannon(beta, normalise=True), _batch()
    weights = list(student.requires_grad_(True).parameters())
    try:
        found = Distilled(kind, ModelTeacher(teacher, ""))(student, batch)
        expected = _plain(kind, student, teacher, batch)
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
        gradients = torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights)
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    finally:
        student.requires_grad_(False).float()
        teacher.float()


def test_a_padded_head_is_cut_to_the_tokens_that_both_have(tiny_model: Any) -> None:
    student, teacher, batch = tiny_model(), tiny_model(vocabulary=128, seed=1), _batch()
    kind = JensenShannon(0.5)
    expected = float(_plain(kind, student, teacher, batch))
    assert float(Distilled(kind, ModelTeacher(teacher, ""))(student, batch)) == pytest.approx(
        expected, rel=1e-5
    )
    turned = float(Distilled(kind, ModelTeacher(student, ""))(teacher, batch))
    assert turned == pytest.approx(expected, rel=1e-5)  # halfway the divergence is symmetric


def test_an_empty_response_has_no_part_and_no_batch_divides_by_zero(tiny_model: Any) -> None:
    student, objective = tiny_model(), Distilled(JensenShannon(), ModelTeacher(tiny_model(seed=1), ""))
    batch = _batch()
    silent = batch.labels.clone()
    silent[1] = IGNORED
    others = Batch(batch.input_ids[[0, 2]], batch.attention_mask[[0, 2]], batch.labels[[0, 2]])
    one_silent = Batch(batch.input_ids, batch.attention_mask, silent)
    assert float(objective(student, one_silent)) == pytest.approx(float(objective(student, others)), rel=1e-5)
    nothing = Batch(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, IGNORED))
    student.requires_grad_(True)
    try:
        loss = objective(student, nothing)
        assert float(loss.detach()) == 0
        for gradient in torch.autograd.grad(loss, list(student.parameters())):
            assert not gradient.any()
    finally:
        student.requires_grad_(False)


def test_micro_batches_add_up_to_the_mean_over_all_tokens_of_the_batch(tiny_model: Any) -> None:
    student = tiny_model()
    objective, batch = Distilled(JensenShannon(), ModelTeacher(tiny_model(seed=1), "")), _batch()
    tuned = FullProjected().open(student, None, 0)
    whole, parts = (one(tuned, objective, batch, 0) for one in (Backprop(), Accumulate(Backprop(), 1)))
    student.requires_grad_(False)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for name, gradient in whole.update.tensors.items():
        assert torch.allclose(gradient, parts.update.tensors[name], rtol=1e-3, atol=1e-6)


class Counted(nn.Module):
    """A model that counts the forward passes over whole batches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config, self.passes = model, model.config, 0
        self.get_output_embeddings = model.get_output_embeddings

    def forward(self, input_ids: torch.Tensor, **asked: Any) -> Any:
        self.passes += input_ids.shape[1] > 4
        return self.inner(input_ids=input_ids, **asked)


def test_both_points_of_a_forward_only_step_share_one_pass_of_the_teacher(tiny_model: Any) -> None:
    student, teacher, batch = tiny_model(), Counted(tiny_model(seed=1)), _batch()
    kind = JensenShannon(1.0)
    tuned = ProjectedTuned(student, BoundSpace(Rademacher(), pool_key(0)))
    objective = Distilled(kind, ModelTeacher(teacher, ""))
    found = tuned.losses(objective, batch, 7, (0.01, -0.01))
    expected = []
    for scale in (0.01, -0.01):
        with tuned.perturbed(7, scale):
            expected.append(float(_plain(kind, student, teacher.inner, batch)))
    tuned.close()
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[0] != pytest.approx(found[1], rel=1e-4)
    assert teacher.passes == 1


def test_slopes_of_all_estimates_agree_with_the_gradient(tiny_model: Any) -> None:
    student = tiny_model().double()
    objective = Distilled(JensenShannon(0.9), ModelTeacher(tiny_model(seed=1).double(), ""))
    tuned, batch = ProjectedTuned(student, BoundSpace(Rademacher(), pool_key(0))), _batch()
    direction = tuned.direction(3)
    weights = dict(tuned.named_weights())
    exact = Jvp()(tuned, objective, batch, 3).update.coefficients[0]
    slope = TwoPoint(1e-4)(tuned, objective, batch, 3).update.coefficients[0]
    tuned.close()
    student.requires_grad_(True)
    gradients = torch.autograd.grad(objective(student, batch), list(student.parameters()))
    named = dict(zip((name for name, _ in student.named_parameters()), gradients, strict=True))
    expected = sum(float((named[name] * direction[name]).sum()) for name in weights)
    student.requires_grad_(False).float()
    assert exact == pytest.approx(expected, rel=1e-4)
    assert slope == pytest.approx(expected, rel=1e-2)
