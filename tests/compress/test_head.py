from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.head import solvable_head
from edgetune.compress.hessian import Hessian
from edgetune.compress.ordered import solve_in_order
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.sequential import compress_model
from edgetune.compress.solve import Moments, solve_stage
from edgetune.core.batch import Batch
from edgetune.core.events import LayerCompressed, ignore
from edgetune.core.quantised import Q4_0, Q8_0
from edgetune.methods.compression import gptaq, joint, optq, rtn

from .problems import tiny

HEAD = "lm_head.weight"
SOLVERS = [dataclasses.replace(one.METHOD, embeddings=Q4_0) for one in (optq, gptaq)]
ORDERED = dataclasses.replace(SOLVERS[1], static_order=True)
NAMES = [one.name for one in SOLVERS]


def untied(family: str = "llama") -> PreTrainedModel:
    model = tiny(family)
    head = nn.Linear(*reversed(cast(Any, model.get_output_embeddings()).weight.shape), bias=False)
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(5))
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    return model.eval()


def head_reads(model: PreTrainedModel, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    head = cast(nn.Module, model.get_output_embeddings())
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        for ids in batches:
            model(input_ids=ids)
    handle.remove()
    return seen


@pytest.mark.parametrize("method", [*SOLVERS, ORDERED], ids=[*NAMES, "ordered"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
def test_the_head_is_solved_on_what_the_compressed_model_hands_it(
    family: str, method: Any, calibration: list[torch.Tensor]
) -> None:
    model, dense = untied(family), untied(family)
    stored = compress_model(model, calibration, method)
    hessian = Hessian(cast(Any, model.get_output_embeddings()).in_features, dense=method.aim_dense)
    for here, there in zip(head_reads(model, calibration), head_reads(dense, calibration), strict=True):
        hessian.add(here, there)
    weights = dense.get_parameter(HEAD).detach().clone()
    solve = solve_in_order if method.static_order else solve_stage
    want = solve({HEAD: weights}, Moments(hessian.matrix, hessian.drift), method, ignore, Q4_0)[HEAD]
    assert torch.allclose(model.get_parameter(HEAD), want.weights, atol=2e-3)
    assert (stored[HEAD].codes == cast(Any, want.stored).codes).float().mean() > 0.99
    assert torch.equal(stored[HEAD].dequantise(), model.get_parameter(HEAD))


def test_its_logits_are_nearer_to_the_dense_ones_than_a_rounded_heads(
    calibration: list[torch.Tensor],
) -> None:
    dense = untied()
    errors = {}
    for method in (*SOLVERS, None):
        model = deepcopy(dense)
        compress_model(model, calibration, method or SOLVERS[1])
        if method is None:
            weights = dense.get_parameter(HEAD).detach()
            model.get_parameter(HEAD).data = round_to_nearest(
                weights, Q4_0, LeastError(), name=HEAD
            ).dequantise()
        with torch.no_grad():
            errors[method and method.name] = sum(
                float((model(input_ids=ids).logits - dense(input_ids=ids).logits).square().sum())
                for ids in calibration
            )
    assert errors["gptaq"] < 0.9 * errors[None]
    assert errors["gptaq"] < errors["optq"]


def test_padding_says_nothing_to_the_head(calibration: list[torch.Tensor]) -> None:
    """Codes are chosen in chains, so that rounding of sums decides some: many stay as they were, or hardly any."""
    ids = torch.cat(
        [calibration[0], torch.randint(2, 50, (2, 40), generator=torch.Generator().manual_seed(2))], 1
    )
    fine = dataclasses.replace(SOLVERS[0], grid=Q8_0)
    codes = []
    for mask in (None, (torch.arange(64) < 24).long().expand(2, 64), torch.ones(2, 64).long()):
        batch = calibration[0] if mask is None else Batch(ids, mask, torch.full_like(ids, -100))
        codes.append(compress_model(untied(), [batch], fine)[HEAD].codes)
    alone, padded, counted = codes
    assert (alone == padded).float().mean() > 0.9
    assert (alone == counted).float().mean() < 0.7


@pytest.mark.parametrize("method", [rtn.METHOD, joint.METHOD], ids=["rtn", "joint"])
def test_a_method_that_does_not_compensate_or_that_prunes_rounds_it(
    method: Any, calibration: list[torch.Tensor]
) -> None:
    model = untied()
    weights = model.get_parameter(HEAD).detach().clone()
    stored = compress_model(model, calibration, method)
    assert torch.equal(stored[HEAD].codes, round_to_nearest(weights, Q8_0, LeastError(), name=HEAD).codes)


def test_a_tied_head_is_the_embedding_and_is_rounded(calibration: list[torch.Tensor]) -> None:
    model = tiny("gpt2")
    assert solvable_head(model, SOLVERS[0]) is None
    stored = compress_model(model, calibration, SOLVERS[0])
    assert HEAD not in stored


def test_the_head_has_one_event_and_no_hook_is_left(calibration: list[torch.Tensor]) -> None:
    model = untied()
    events: list[Any] = []
    compress_model(model, calibration, SOLVERS[1], events.append)
    (event,) = [one for one in events if isinstance(one, LayerCompressed) and one.name == HEAD]
    assert event.error < event.rounding_error
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in model.modules())


def test_a_head_that_is_left_alone_is_left_alone(calibration: list[torch.Tensor]) -> None:
    model = untied()
    before = model.get_parameter(HEAD).detach().clone()
    stored = compress_model(model, calibration, dataclasses.replace(gptaq.METHOD, embeddings=None))
    assert HEAD not in stored
    assert torch.equal(model.get_parameter(HEAD), before)
