"""A loop of the user's own: the same steps as a run's, and a ledger that gives its weights back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import edgetune
from edgetune.core.errors import ConfigError, DataError
from edgetune.core.ledger import read_ledger
from edgetune.data.records import Record
from edgetune.federation.tuner import Tuner

BATCH = [("say a", "yes sir"), ("say b", "no sir")]
METHODS = [
    ("mezo", {"learning_rate": 1e-3}),
    ("mezo", {"learning_rate": 1e-3, "optimiser": "momentum", "history": 2}),
    ("mezo", {"learning_rate": 1e-3, "objective": "token_f1", "eps": 0.1, "answer_tokens": 2}),
    ("fedkseed", {"learning_rate": 1e-3, "pool": 16}),
    ("mezo_lora", {"learning_rate": 1e-2}),
    ("lora", {"learning_rate": 1e-2}),
]


@pytest.fixture
def base(save_tiny: Callable[..., Path]) -> Path:
    return save_tiny()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_the_ledger_gives_the_tuned_weights_back(
    method: str, options: dict[str, object], base: Path, tmp_path: Path
) -> None:
    with Tuner(base, method, seed=3, **options) as tuner:
        for _ in range(4):
            tuner.step(BATCH)
        ledger = tuner.save(tmp_path / "m.ledger")
        assert (ledger.method, ledger.round, tuner.steps) == (method, 4, 4)
        tuned = weights(tuner.model())
    loaded = weights(edgetune.load(base, tmp_path / "m.ledger"))
    assert all(torch.equal(loaded[name], tuned[name]) for name in loaded)
    plain = weights(Tuner(base, method, **options).model())
    moved = any(not torch.equal(plain[name], tuned[name]) for name in plain)
    assert moved == ("objective" not in options), "a random model's answers all score nothing"


def test_the_same_seed_and_batches_give_the_same_ledger(base: Path, tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((1, 1, 2)):
        with Tuner(base, "mezo", seed=seed, learning_rate=1e-3) as tuner:
            losses = [tuner.step(BATCH) for _ in range(3)]
            tuner.save(tmp_path / f"{number}.ledger")
        files.append(((tmp_path / f"{number}.ledger").read_bytes(), losses))
    assert files[0] == files[1] != files[2]
    assert len(set(read_ledger(tmp_path / "0.ledger").update.keys)) == 3  # type: ignore[union-attr]


def test_a_step_is_the_methods_two_points(base: Path) -> None:
    """By hand: L at w + eps z and w - eps z, and w moved by lr times their slope along z."""
    with Tuner(base, "mezo", seed=5, learning_rate=1e-2, eps=1e-3) as tuner:
        start, at = weights(tuner._worker.tuned.model), tuner.loss(BATCH)
        seen = tuner.step(BATCH)
        moved = weights(tuner._worker.tuned.model)
        ((key, coefficient),) = zip(
            tuner._worker.tuned.state().keys, tuner._worker.tuned.state().coefficients, strict=True
        )
    assert seen == pytest.approx(at, abs=1e-3)
    changes = torch.cat([(moved[name] - start[name]).flatten() for name in start])
    assert torch.allclose(changes.abs(), torch.full_like(changes, abs(float(coefficient))), rtol=1e-2)
    assert key > 0


def test_learning_lowers_the_loss_of_what_is_learnt(base: Path) -> None:
    with Tuner(base, "lora", learning_rate=3e-2) as tuner:
        before = tuner.loss(BATCH)
        for _ in range(20):
            tuner.step(BATCH)
        assert tuner.loss(BATCH) < before - 0.1


def test_a_schedule_counts_steps(base: Path) -> None:
    with Tuner(base, "mezo", learning_rate=1e-3, schedule="linear", schedule_steps=2) as tuner:
        for _ in range(3):
            tuner.step(BATCH)
        first, second = tuner._worker.tuned.state().coefficients  # the third has the rate 0 and moves nothing
    assert first != 0
    assert second != 0


def test_records_and_pairs_are_the_same(base: Path) -> None:
    records = [Record(prompt, "", response, "any") for prompt, response in BATCH]
    with Tuner(base, "mezo") as tuner:
        assert tuner.loss(records) == tuner.loss(BATCH)


def test_what_cannot_be_tuned_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mezo'"):
        Tuner(base, "mezzo")
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        Tuner(base, "mezo", learning_rat=1e-3)
    with pytest.raises(ConfigError, match="seed"):
        Tuner(base, "mezo", seed=-1)
    with pytest.raises(ConfigError, match="at least 8 tokens"):
        Tuner(base, "mezo", max_tokens=3)
    with Tuner(base, "mezo") as tuner, pytest.raises(DataError, match="at least one record"):
        tuner.step([])
