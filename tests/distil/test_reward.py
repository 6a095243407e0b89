"""The reward's surrogate against cross-entropies, its baseline, and against the exact gradient of the expectation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgetune.core.batch import response_losses
from edgetune.core.errors import ConfigError
from edgetune.core.jensen_shannon import JensenShannon
from edgetune.data.encode import Example, collate
from edgetune.data.sampling import draw_batches
from edgetune.distil.objective import Distilled
from edgetune.distil.on_policy import OnPolicy
from edgetune.distil.reward import REWARDS, Reward
from edgetune.distil.teacher import ModelTeacher
from edgetune.recipe.lesson import reward_of

EXAMPLES = [Example((5, 6 + n, 7, 8, 9), 2) for n in range(4)]


def _words(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def test_the_surrogate_is_the_divergence_and_weighted_cross_entropies(tiny_model: Any) -> None:
    student, teacher, kind = tiny_model(), ModelTeacher(tiny_model(seed=1), ""), JensenShannon(1.0)
    batch = replace(collate(EXAMPLES[:3], 0), advantages=torch.tensor([0.5, -1.0, 0.0]))
    entropies, counts = response_losses(student, batch)
    plain = float(Distilled(kind, teacher)(student, batch))
    expected = 0.75 * plain + 0.25 * float((batch.advantages * entropies).sum() / counts.sum())  # type: ignore[operator]
    assert float(Distilled(kind, teacher, 0.25)(student, batch)) == pytest.approx(expected, rel=1e-5)
    unscored = replace(batch, advantages=None)
    assert float(Distilled(kind, teacher, 0.25)(student, unscored)) == pytest.approx(plain, rel=1e-6)
    parts = [Distilled(kind, teacher, 0.25).records(student, part) for part in batch.split(2)]
    whole = Distilled(kind, teacher, 0.25).records(student, batch)
    assert torch.allclose(torch.cat([one for one, _ in parts]), whole[0], rtol=1e-4)


def test_a_baseline_is_the_mean_of_the_others() -> None:
    scores = [0.2, 0.9, 0.4]
    reward = Reward(lambda said, wanted: scores, 1.0, _words, "")
    found = reward.advantages([[1], [2], [3]], [[1], [1], [1]]).tolist()
    for place, one in enumerate(scores):
        others = scores[:place] + scores[place + 1 :]
        assert found[place] == pytest.approx(one - sum(others) / 2)
    alone = Reward(lambda said, wanted: [0.7], 1.0, _words, "")
    assert alone.advantages([[1]], [[1]]).tolist() == [0.0]


def test_its_mean_gradient_is_that_of_the_expected_reward(tiny_model: Any) -> None:
    """One token, one prompt: the expectation over the vocabulary can be written out."""
    model, many = tiny_model().double(), 6000
    bias = torch.zeros(90, dtype=torch.float64, requires_grad=True)
    prices = torch.linspace(-1, 1, 90, dtype=torch.float64).square()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6]])).logits[0, -1, :90]
    (exact,) = torch.autograd.grad((prices * (logits + bias).softmax(-1)).sum(), bias)
    policy = OnPolicy(1.0, 1.0, 1)
    reward = Reward(lambda said, wanted: [float(prices[int(one)]) for one in said], 1.0, _words, "")
    batches = policy.batches(
        draw_batches([EXAMPLES[0]] * many, many, 0, seed=2, device=0), SimpleNamespace(model=model),  # type: ignore[arg-type]
        ends=frozenset(), vocabulary=90, pad_id=0, seed=2, device=0, first=0, reward=reward,
    )  # fmt: skip
    batch = next(batches)
    model.float()
    said = batch.input_ids[:, -1]
    chances = (logits + bias).log_softmax(-1)[said]
    (found,) = torch.autograd.grad((batch.advantages * chances).mean(), bias)  # type: ignore[operator]
    assert float((found - exact).norm() / exact.norm()) < 0.25
    assert float(torch.nn.functional.cosine_similarity(found, exact, dim=0)) > 0.97


def test_what_is_scored_is_the_response_beside_that_of_the_data(tiny_model: Any) -> None:
    seen = list[tuple[str, str]]()

    def score(said: Sequence[str], wanted: Sequence[str]) -> list[float]:
        seen.extend(zip(said, wanted, strict=True))
        return list(map(float, range(len(said))))

    policy = OnPolicy(1.0, 1.0, 3, regenerate_every=2)
    batches = policy.batches(
        draw_batches(EXAMPLES, 2, 0, seed=1, device=0), SimpleNamespace(model=tiny_model()),  # type: ignore[arg-type]
        ends=frozenset(), vocabulary=90, pad_id=0, seed=1, device=0, first=0,
        reward=Reward(score, 0.5, _words, ""),
    )  # fmt: skip
    made = list(itertools.islice(batches, 2))
    assert [wanted for _, wanted in seen] == ["7 8 9"] * 4
    rows = [row for batch in made for row in batch.input_ids[:, 2:].tolist()]
    assert [said for said, _ in seen] == [_words(row) for row in rows]
    advantages = torch.cat([batch.advantages for batch in made if batch.advantages is not None])
    assert advantages.tolist() == pytest.approx([-2.0, -2 / 3, 2 / 3, 2.0])


def test_rewards_by_name_and_from_a_file(tiny_tokenizer: Any, tmp_path: Path) -> None:
    for name, expected in (("exact_match", 0.0), ("token_f1", 0.5), ("rouge_l", 0.5)):
        assert REWARDS[name](["red fox"], ["red dog"]) == [pytest.approx(expected, abs=1e-6)]
    path = tmp_path / "short.py"
    path.write_text("def reward(answers, references):\n    return [-float(len(one)) for one in answers]\n")
    own = reward_of(str(path), 0.5, tiny_tokenizer)
    ids = [tiny_tokenizer("fox").input_ids, tiny_tokenizer("foxes").input_ids]
    assert own.advantages(ids, ids).tolist() == [2.0, -2.0]
    assert own.digest != "exact_match"
    path.write_text("reward = 3\n")
    with pytest.raises(ConfigError, match="defines no reward"):
        reward_of(str(path), 0.5, tiny_tokenizer)
    with pytest.raises(ConfigError, match="no reward called"):
        reward_of("exact_mach", 0.5, tiny_tokenizer)


@pytest.mark.parametrize("given", [[0.1], [float("nan"), 0.0]])
def test_a_score_that_gives_no_number_a_response_is_refused(given: list[float]) -> None:
    with pytest.raises(ConfigError, match="numbers for 2 responses"):
        Reward(lambda said, wanted: given, 1.0, _words, "").advantages([[1], [2]], [[1], [2]])
    with pytest.raises(ConfigError, match="weight"):
        Reward(lambda said, wanted: given, 0.0, _words, "")
