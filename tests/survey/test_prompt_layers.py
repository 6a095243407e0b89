"""The choice of prompt layers: scores by brute force, whatever the order of records and devices, once for a run."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.part import by_name
from edgetune.data.encode import Example, collate
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import defaults, with_options
from edgetune.survey import KEEP_RULES, Density, Gap, PromptLayers
from edgetune.survey.prompt_layers import MASK
from edgetune.survey.similarity import similarity_score
from edgetune.tune import DenseTuned, Prefix

GIVEN = PromptLayers(ratio=0.5)


def batch_of(order: Any = range(4)) -> Batch:
    return collate([Example((10 + at, 20, *range(30, 33 + at), 7, 8, 0), 3) for at in order], 0)


def tuned_of(model: Any, scale: float = 0.1) -> DenseTuned:
    tuned = Prefix(2, scale=scale).open(model, None, 3)
    assert isinstance(tuned, DenseTuned)
    return tuned


def brute_force(hidden: Any, mask: Any) -> float:
    """Return the score record by record, with numpy's solver for any matrix as the reference code uses it."""
    rows = [
        (one * kept[:, None]).reshape(-1).astype(np.float64) for one, kept in zip(hidden, mask, strict=True)
    ]
    table = [[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a in rows] for b in rows]
    values = np.real(np.linalg.eigvals(np.array(table))) + 1e-5
    return float(np.sum(np.log(values) + 1 / values))


def test_scores_are_those_of_brute_force_on_the_base_without_prompts(tiny_model: Any) -> None:
    base, batch = tiny_model(), batch_of()
    states = base(batch.input_ids, batch.attention_mask, output_hidden_states=True).hidden_states
    tuned = tuned_of(tiny_model(), scale=9.0)
    found = GIVEN.measure(tuned, tuned.layers, repeat(batch), response_loss)
    expected = [brute_force(one.numpy(), batch.attention_mask.numpy()) for one in states[1:-1]]
    assert len(expected) == len(tuned.layers) - 1 == GIVEN.size(len(tuned.layers))
    assert np.allclose(found, expected, rtol=1e-4)
    assert found[0] > 4 + 1e-3


def test_a_score_does_not_depend_on_the_order_of_records_and_not_on_padding() -> None:
    hidden, mask = torch.randn(5, 7, 8), torch.ones(5, 7, dtype=torch.int64)
    mask[2, 4:] = 0
    score, order = similarity_score(hidden, mask), [3, 0, 4, 1, 2]
    assert similarity_score(hidden[order], mask[order]) == pytest.approx(score, rel=1e-12)
    hidden[2, 4:] = 1e4
    assert similarity_score(hidden, mask) == score
    hidden[2, 3] += 1
    assert similarity_score(hidden, mask) != score


def test_a_score_rises_with_likeness_and_one_record_says_nothing() -> None:
    mask, ends = torch.ones(3, 2, dtype=torch.int64), torch.eye(6).view(3, 2, 6)[:, :, :6]
    alike = ends + 3 * torch.ones(2, 6)
    assert similarity_score(ends, mask) == pytest.approx(3, abs=1e-6)
    assert similarity_score(alike, mask) > 4
    assert similarity_score(torch.ones(3, 2, 6), mask) == pytest.approx(2e5 - 20, rel=1e-3)
    one = [similarity_score(torch.randn(1, 2, 6), mask[:1]) for _ in range(2)]
    assert one[0] == pytest.approx(one[1], abs=1e-9)
    assert one[0] == pytest.approx(1, abs=1e-6)


SCORES = {3: [1.0, 5.0, 2.0], 7: [4.0, 0.0, 2.5], 9: [2.0, 2.0, 2.0]}
HELD = {3: 10, 7: 30, 9: 20}


def choose(
    survey: PromptLayers, order: list[int], memory: Any = None, told: Any = None, ratio: Any = None
) -> Any:
    told = SCORES if told is None else told
    scores = {
        id: np.array([*told[id], *([] if survey.ratio else [ratio[id]])], np.float32)
        for id in order
        if id in told
    }
    memory = survey.start(4) if memory is None else memory
    return survey.choose(sorted(order), scores, HELD, 4, memory), memory


def test_layers_are_ranked_by_the_weighted_mean_of_scores_and_the_last_layer_last() -> None:
    expected = sum(HELD[id] * np.array(SCORES[id]) for id in SCORES) / 60
    assert np.argsort(-expected).tolist() == [0, 2, 1]
    for ratio, kept in ((0.25, [0]), (0.5, [0, 2]), (0.75, [0, 1, 2]), (1.0, [0, 1, 2, 3]), (0.01, [0])):
        masks, memory = choose(PromptLayers(ratio=ratio), [3, 7, 9])
        assert {tuple(np.flatnonzero(mask)) for mask in masks.values()} == {tuple(kept)}
        assert memory[MASK].tolist() == [at in kept for at in range(4)]


def test_the_order_of_devices_plays_no_part_and_those_that_did_not_answer_count_nothing() -> None:
    results = [choose(GIVEN, order) for order in ([3, 7, 9], [9, 3, 7], [7, 9, 3])]
    assert all(torch.equal(results[0][1][MASK], one[1][MASK]) for one in results)
    masks, memory = choose(GIVEN, [3, 7, 9], told={3: SCORES[3]})
    assert list(masks) == [3]
    assert memory[MASK].tolist() == [0, 1, 1, 0]


def test_the_ratio_is_the_weighted_mean_of_the_devices() -> None:
    ratio = {3: 0.9, 7: 0.1, 9: 0.3}
    masks, _ = choose(PromptLayers(), [3, 7, 9], ratio=ratio)
    assert {int(mask.sum()) for mask in masks.values()} == {round(4 * (9 + 3 + 6) / 60)}
    masks, _ = choose(PromptLayers(), [3, 7, 9], ratio=dict.fromkeys(ratio, 7.5))
    assert masks[3].all()


def test_layers_are_chosen_once_for_all_devices_and_asked_for_until_then() -> None:
    survey, memory = GIVEN, GIVEN.start(4)
    assert choose(survey, [3, 7, 9], memory, told={})[0] == {}
    assert survey.due(2, memory)
    choose(survey, [3, 7, 9], memory)
    assert not survey.due(3, memory)
    later, _ = choose(survey, [2, 5, 7], memory, told={})
    assert set(later) == {2, 5, 7}
    assert all(np.flatnonzero(mask).tolist() == [0, 2] for mask in later.values())


def test_a_device_finds_the_ratio_unless_it_is_given(tiny_model: Any) -> None:
    tuned = tuned_of(tiny_model())
    for rule in (Gap(), Density()):
        found = PromptLayers(keep=rule, steps=4).measure(
            tuned, tuned.layers, repeat(batch_of()), response_loss
        )
        assert len(found) == PromptLayers().size(len(tuned.layers)) == len(tuned.layers)
        assert 0 <= found[-1] <= 1


def test_rules_are_found_by_name_and_numbers_out_of_range_are_refused() -> None:
    method = with_options(tuning_method("fedpeptao"), {"keep_rule": "gap", "spectrum_steps": 9})
    assert method.survey == PromptLayers(keep=Gap(), steps=9)
    assert with_options(method, defaults(method)) == method
    with pytest.raises(ConfigError, match="did you mean 'density'"):
        with_options(method, {"keep_rule": "densty"})
    for broken in ({"ratio": -0.1}, {"ratio": 1.1}, {"ratio": float("nan")}, {"steps": 1}):
        with pytest.raises(ConfigError, match="ratio from 0 to 1"):
            PromptLayers(**broken)
    assert by_name("gap", KEEP_RULES, "rule") is Gap


def test_a_batch_of_one_record_is_refused_and_so_is_a_target_without_prompts() -> None:
    method = tuning_method("fedpeptao")
    with pytest.raises(ConfigError, match="at least 2 records"):
        replace(method, batch_size=1)
    with pytest.raises(ConfigError, match="needs prompts"):
        with_options(method, {"target": "bitfit"})
