"""Responses that the student samples: the right distribution, the right tokens learnt, the same on every machine."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key, stream
from edgetune.core.update import Projected
from edgetune.data.encode import Example
from edgetune.data.sampling import draw_batches
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.distil.on_policy import OnPolicy, drawn, prompts_of
from edgetune.tune import ProjectedTuned

EXAMPLES = [Example((*tuple(range(5, 8 + n)), 3, 4, 0), 3 + n) for n in range(6)]


def _batches(
    policy: OnPolicy, tuned: Any, many: int, *, first: int = 0, ends: Any = frozenset({0})
) -> list[Batch]:
    given = draw_batches(EXAMPLES, 2, 0, seed=1, device=4, first=first)
    made = policy.batches(
        given, tuned, ends=ends, vocabulary=90, pad_id=0, seed=1, device=4, first=first
    )  # fmt: skip
    return list(itertools.islice(made, many))


def _same(one: Batch, other: Batch) -> bool:
    pairs = (
        (one.input_ids, other.input_ids),
        (one.labels, other.labels),
        (one.attention_mask, other.attention_mask),
    )
    return all(torch.equal(left, right) for left, right in pairs)


def test_tokens_come_with_their_probabilities_at_the_temperature_and_never_from_padding() -> None:
    logits, many = torch.tensor([[1.0, 0.0, -1.0, 2.0, 50.0]]), 20_000
    uniform = stream(0, "test").random((many, 1))
    picked = drawn(uniform, 0.7, 4)(logits.expand(many, -1))
    expected = (logits[0, :4] / 0.7).softmax(-1)
    found = torch.bincount(picked, minlength=4) / many
    assert len(found) == 4
    assert torch.allclose(found, expected, atol=4 * float((expected * (1 - expected)).max() / many) ** 0.5)


def test_uniform_numbers_at_both_ends_pick_the_first_and_the_last_token_that_can_be() -> None:
    logits = torch.tensor([[-np.inf, 1.0, 1.0, -np.inf]]).float().expand(2, -1)
    uniform = np.array([[0.0], [np.nextafter(1.0, 0.0)]])
    assert drawn(uniform, 1.0, 4)(logits).tolist() == [1, 2]


def test_the_prompt_stays_and_what_follows_the_first_end_is_no_response(tiny_model: Any) -> None:
    policy, tuned = OnPolicy(1.0, 1.0, 12), SimpleNamespace(model=tiny_model())
    ends = frozenset(range(0, 90, 4))  # a quarter of the tokens, so that many responses end early
    made, lengths = _batches(policy, tuned, 6, ends=ends), set[int]()
    given = itertools.islice(draw_batches(EXAMPLES, 2, 0, seed=1, device=4), 6)
    for batch, old in zip(made, given, strict=True):
        assert prompts_of(batch) == prompts_of(old)
        for row, prompt in enumerate(prompts_of(batch)):
            said = batch.labels[row][batch.labels[row] != IGNORED].tolist()
            whole = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
            assert whole == [*prompt, *said]
            assert not ends & set(said[:-1])
            assert len(said) == 12 or said[-1] in ends
            lengths.add(len(said))
    assert len(lengths) > 3


def test_a_response_does_not_depend_on_the_padding_of_the_records_beside_it(tiny_model: Any) -> None:
    model, policy = tiny_model("gpt2"), OnPolicy(1.0, 1.0, 6)
    uniform = stream(0, "test").random((2, 6))
    short, long = [5, 6], [7, 8, 9, 10, 11, 12, 13]
    together = policy.sample(model, [short, long], uniform, frozenset({0}), 90)
    alone = [policy.sample(model, [one], uniform[row : row + 1], frozenset({0}), 90)[0]
             for row, one in enumerate((short, long))]  # fmt: skip
    assert together == alone


def test_no_share_is_the_data_and_half_is_a_coin_a_step(tiny_model: Any) -> None:
    tuned = SimpleNamespace(model=tiny_model())
    data = _batches(OnPolicy(0.0), tuned, 40)
    assert all(
        _same(one, other)
        for one, other in zip(data, draw_batches(EXAMPLES, 2, 0, seed=1, device=4), strict=False)
    )
    half = _batches(OnPolicy(0.5, max_new_tokens=2), tuned, 40)
    own = sum(not _same(one, other) for one, other in zip(half, data, strict=True))
    assert 8 <= own <= 32
    assert all(
        not _same(one, other) for one, other in zip(_batches(OnPolicy(1.0), tuned, 5), data[:5], strict=True)
    )


def test_a_run_that_goes_on_samples_what_an_undisturbed_one_would(tiny_model: Any) -> None:
    tuned, policy = SimpleNamespace(model=tiny_model()), OnPolicy(0.7, max_new_tokens=4, regenerate_every=3)
    whole = _batches(policy, tuned, 12)
    assert all(
        _same(one, other) for one, other in zip(whole[6:], _batches(policy, tuned, 6, first=6), strict=True)
    )


def test_steps_that_share_a_sampling_have_the_weights_of_the_first_and_the_next_has_the_new(
    tiny_model: Any,
) -> None:
    old, new = tiny_model(), tiny_model(seed=3)
    expected = [
        _batches(OnPolicy(1.0, max_new_tokens=5), SimpleNamespace(model=one), 4) for one in (old, new)
    ]
    tuned, made = SimpleNamespace(model=old), list[Batch]()
    given = draw_batches(EXAMPLES, 2, 0, seed=1, device=4)
    policy = OnPolicy(1.0, max_new_tokens=5, regenerate_every=2)
    for batch in policy.batches(
        given, tuned, ends=frozenset({0}), vocabulary=90, pad_id=0, seed=1, device=4, first=0
    ):
        made.append(batch)
        tuned.model = new
        if len(made) == 4:
            break
    for step, source in enumerate((0, 0, 1, 1)):
        assert _same(made[step], expected[source][step])
        assert not _same(made[step], expected[1 - source][step])


def test_steps_that_weights_have_not_taken_yet_are_taken_before_they_sample(tiny_model: Any) -> None:
    space, policy = BoundSpace(Rademacher(), pool_key(0)), OnPolicy(1.0, max_new_tokens=8)
    tuned = ProjectedTuned(tiny_model(), space)
    before = _batches(policy, tuned, 1)
    step = Projected(np.array([5], np.int64), np.array([0.2], np.float32))
    tuned.apply(step)
    late = _batches(policy, tuned, 1)
    tuned.reset(step)
    taken = _batches(policy, tuned, 1)
    tuned.reset(None)
    tuned.close()
    assert _same(late[0], taken[0])
    assert not _same(late[0], before[0])


@pytest.mark.parametrize(
    "given", [{"fraction": 1.5}, {"fraction": 0.5, "temperature": 0.0}, {"fraction": 0.5, "max_new_tokens": 0},
              {"fraction": 0.5, "regenerate_every": 0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        OnPolicy(**given)
