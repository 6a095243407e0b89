"""Recovery towards the dense model: the divergence against its definition, and training that lowers it."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from edgetune.compress.structured.budget import Uniform
from edgetune.compress.structured.distil import distil, divergence, mean_divergence, rate
from edgetune.compress.structured.importance import RULES
from edgetune.compress.structured.pruning import Structured, prune_model
from edgetune.core.errors import DataError, DivergenceError

from .decoders import decoder
from .test_importance import text


@pytest.mark.parametrize("all_tokens", [False, True])
def test_the_divergence_is_that_of_every_counted_position(all_tokens: bool) -> None:
    teacher, student, total, count = decoder("llama"), decoder("llama", seed=1), 0.0, 0
    for batch in text():
        with torch.no_grad():
            said, ours = (
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                .logits.double()
                .softmax(-1)
                for model in (teacher, student)
            )
        for row, ids in enumerate(batch.labels):
            for t in range(len(ids) - 1):
                counted = batch.attention_mask[row, t + 1] if all_tokens else ids[t + 1] != -100
                if counted:
                    p, q = said[row, t], ours[row, t]
                    total, count = total + float((p * (p / q).log()).sum()), count + 1
    assert mean_divergence(student, teacher, text(), all_tokens=all_tokens) == pytest.approx(
        total / count, rel=1e-4
    )


def test_a_model_does_not_diverge_from_itself_and_nothing_is_no_number() -> None:
    model = decoder("llama")
    assert float(divergence(model, model, text()[0])) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(mean_divergence(model, model, []))


def test_recovery_brings_a_pruned_model_nearer_and_leaves_its_parent() -> None:
    dense = decoder("llama")
    before = {name: weight.clone() for name, weight in dense.named_parameters()}
    student, batches = deepcopy(dense), text(16, 12)
    prune_model(student, batches, Structured(0.25, RULES["activation"], Uniform(), compensate=False))
    first = mean_divergence(student, dense, batches)
    found = distil(student, dense, list(student.parameters()), batches, steps=40, learning_rate=3e-3)
    assert len(found) == 40
    assert mean_divergence(student, dense, batches) < 0.5 * first
    assert all(torch.equal(weight, before[name]) for name, weight in dense.named_parameters())
    assert not any(weight.requires_grad or weight.grad is not None for weight in student.parameters())


def test_the_same_seed_recovers_to_the_same_weights() -> None:
    dense, weights = decoder("llama"), []
    for seed in (0, 0, 1):
        student = decoder("llama", seed=1)
        distil(student, dense, list(student.parameters()), text(), steps=3, learning_rate=1e-3, seed=seed)
        weights.append(student.lm_head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_what_is_given_is_trained() -> None:
    dense, student = decoder("llama"), decoder("llama", seed=1)
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    distil(student, dense, [student.lm_head.weight], text(), steps=2, learning_rate=1e-2)
    moved = [name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])]
    assert moved == ["lm_head.weight"]


def test_a_rate_rises_then_falls() -> None:
    rates = [rate(step, 40) for step in range(40)]
    assert rates[3] == rates[4] == 1.0
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert rate(0, 1) == 1.0


def test_what_cannot_be_recovered_is_refused() -> None:
    dense, student = decoder("llama"), decoder("llama", seed=1)
    with pytest.raises(DataError, match="needs text"):
        distil(student, dense, [student.lm_head.weight], [], steps=1, learning_rate=1e-3)
    student.lm_head.weight[0] = float("inf")
    with pytest.raises(DivergenceError, match="at step 0"):
        distil(student, dense, [student.lm_head.weight], text(), steps=1, learning_rate=1e-3)
