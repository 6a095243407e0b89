"""Aiming at the dense model's outputs, against least squares and on real models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from edgetune.compress.hessian import Factor, Hessian, factorise, uncoupled
from edgetune.compress.sequential import compress_model
from edgetune.compress.solve import Moments, solve_stage
from edgetune.compress.target import aimed_at_dense, pull
from edgetune.core.errors import ConfigError
from edgetune.core.events import ignore
from edgetune.methods.compression import gptaq, optq, rtn

from .problems import FAMILIES, tiny
from .test_markov import divergence

GPTAQ, OPTQ = (dataclasses.replace(one.METHOD, embeddings=None) for one in (gptaq, optq))


def problem(seed: int, rows: int = 6, columns: int = 64, tokens: int = 500) -> tuple[torch.Tensor, ...]:
    """Return weights, inputs, and the dense model's inputs, which they are a disturbed form of."""
    luck = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=luck) / columns**0.5
    dense = torch.randn(tokens, columns, generator=luck) @ mixing
    inputs = dense @ (
        torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=luck)
    ) + 0.05 * torch.randn(tokens, columns, generator=luck)
    return torch.randn(rows, columns, generator=luck), inputs, dense


def moments(inputs: torch.Tensor, dense: torch.Tensor) -> Hessian:
    seen = Hessian(inputs.shape[1], dense=True)
    for x, y in zip(inputs.split(100), dense.split(100), strict=True):
        seen.add(x, y)
    return seen


def drift(seen: Hessian) -> torch.Tensor:
    assert seen.drift is not None
    return seen.drift


def test_moments_are_those_of_all_tokens_at_once() -> None:
    _, inputs, dense = problem(0)
    seen = moments(inputs, dense)
    torch.testing.assert_close(seen.matrix, 2 / len(inputs) * inputs.T @ inputs)
    torch.testing.assert_close(drift(seen), 2 / len(inputs) * (dense - inputs).T @ inputs)


@pytest.mark.parametrize("seed", range(3))
def test_the_target_is_the_ridge_solution(seed: int) -> None:
    weights, inputs, dense = problem(seed)
    seen = moments(inputs, dense)
    factor = factorise(seen.matrix, 0.01)
    found = aimed_at_dense(weights, drift(seen), factor)
    # min ||T X - W Y||^2 + l ||T - W||^2 is least squares with rows sqrt(l) below; means over tokens as in H
    ridge = (0.01 * seen.matrix.diagonal().mean()).double()
    scale = (2 / len(inputs)) ** 0.5
    left = torch.cat([scale * inputs.double(), ridge.sqrt() * torch.eye(64, dtype=torch.float64)])
    right = torch.cat([scale * dense.double() @ weights.double().T, ridge.sqrt() * weights.double().T])
    torch.testing.assert_close(
        found.double(), torch.linalg.lstsq(left, right).solution.T, rtol=1e-3, atol=1e-4
    )


def test_the_target_of_many_rows_is_made_with_one_product() -> None:
    weights, inputs, dense = problem(4)
    seen = moments(inputs, dense)
    factor = factorise(seen.matrix, 0.01)
    torch.testing.assert_close(
        weights + weights @ pull(drift(seen), factor),
        aimed_at_dense(weights, drift(seen), factor),
        rtol=1e-4,
        atol=1e-4,
    )


def test_inputs_as_they_were_leave_the_weights() -> None:
    weights, inputs, _ = problem(1)
    seen = moments(inputs, inputs)
    found = aimed_at_dense(weights, drift(seen), factorise(seen.matrix))
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-4)


def test_without_an_inverse_the_weights_stay() -> None:
    weights, inputs, dense = problem(2)
    seen = moments(inputs, dense)
    factor: Factor = uncoupled(seen.matrix.diagonal(), fallback=True)
    assert aimed_at_dense(weights, drift(seen), factor) is weights


def test_a_stage_is_nearer_to_the_dense_outputs_and_says_so() -> None:
    weights, inputs, dense = problem(3, rows=32)
    seen, wanted = moments(inputs, dense), dense @ weights.T

    def missed(method: object, aim: torch.Tensor | None) -> float:
        solved = solve_stage({"w": weights}, Moments(seen.matrix, aim), method, ignore)["w"].weights  # type: ignore[arg-type]
        return float((inputs @ solved.T - wanted).square().sum())

    assert missed(GPTAQ, drift(seen)) < 0.5 * missed(OPTQ, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_follows_the_dense_model_beside_the_compressed_one(
    family: str, calibration: list[torch.Tensor]
) -> None:
    def distance(method: object) -> float:
        model, dense = tiny(family), tiny(family)
        compress_model(model, calibration, method)  # type: ignore[arg-type]
        with torch.no_grad():
            logits = [one(torch.cat(calibration)).logits.log_softmax(-1) for one in (dense, model)]
        return float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())

    assert distance(GPTAQ) <= 1.02 * distance(OPTQ)


def test_the_dense_blocks_are_not_left_behind(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    assert isinstance(model, LlamaForCausalLM)
    before = sum(isinstance(one, nn.Linear) for one in model.modules())
    compress_model(model, calibration, GPTAQ)
    assert sum(isinstance(one, nn.Linear) for one in model.modules()) == before


def test_a_method_that_compensates_nothing_cannot_aim() -> None:
    with pytest.raises(ConfigError, match="aim_dense"):
        dataclasses.replace(rtn.METHOD, aim_dense=True)


def test_the_trained_model_gains_a_quarter(markov: Path) -> None:
    plain, aimed = divergence(markov, OPTQ, 128, 64), divergence(markov, GPTAQ, 128, 64)
    assert aimed < 0.8 * plain
