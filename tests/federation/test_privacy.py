"""Private federations: what is told and what not, what replays, who is in a batch, what is refused before a step."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import METHODS, SEED, MakeToy, Toy, evaluate, examples

import edgetune
from edgetune.core.errors import ConfigError
from edgetune.core.events import Privacy, RoundFinished
from edgetune.core.ledger import read_ledger
from edgetune.core.update import Projected
from edgetune.data.sampling import Poisson
from edgetune.federation.load import materialise
from edgetune.federation.messages import Messages
from edgetune.federation.privacy import protect, releases_of
from edgetune.federation.reply import Reply, binding
from edgetune.federation.server import Server
from edgetune.federation.turns import Turns
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.privacy import Releases
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.report.notes import privacy_note
from edgetune.report.summary import read_summary
from edgetune.suggest.settling import settle
from edgetune.wire import UP, Frame

private = pytest.mark.parametrize("name", ["dpzero", "dp_aggzo", "hidden_devices"])


@private
def test_the_loss_falls_under_noise_and_is_told_of_held_out_records_only(name: str, toy: MakeToy) -> None:
    run = toy(name)
    before = evaluate(run.worker.tuned)
    run.federate(14)
    rounds = [event for event in run.events if isinstance(event, RoundFinished)]
    assert rounds[-1].loss is not None
    assert rounds[-1].loss < 0.97 * before
    assert all(math.isnan(event.train_loss) and event.dropped == 0 for event in rounds)


@private
def test_a_run_is_no_function_of_its_seed_and_its_ledger_replays_to_its_weights(
    name: str, toy: MakeToy, tmp_path: Path
) -> None:
    run, again = toy(name), toy(name, run="b")
    first, second = run.federate(3), again.federate(3)
    assert isinstance(first.update, Projected)
    assert isinstance(second.update, Projected)
    assert first.digest != second.digest
    assert first.update.keys.tolist() == second.update.keys.tolist()
    expected = tensor_digest(run.worker.tuned.named_weights())
    ledger = read_ledger(run.ledger, base_digest=first.base_digest)
    assert ledger.weights_digest == expected
    replayed = materialise(load_backbone(run.folder), ledger)
    assert tensor_digest(replayed.named_parameters()) == expected


@private
def test_a_reply_says_nothing_of_the_records_but_the_noisy_change(name: str, toy: MakeToy) -> None:
    run = toy(name)
    method, worker = run.method, run.worker
    server = Server(
        method, worker.identity, list(run.devices), participation=1.0, seed=SEED, state=worker.tuned.state()
    )
    messages = Messages(method, binding(method.digest, worker.identity, SEED), SEED)
    for id, payload in server.open_round().items():
        frame = Frame.decode(
            run.devices[id].answer(payload), kind=UP, method=messages.binds[0], base=messages.binds[1]
        )
        content = Reply.decode(frame.body, method.up, messages.reply_known(1, id, server.state)).content
        assert (content.loss, content.dropped) == (0.0, 0)


def _all_records(method: TuningMethod) -> TuningMethod:
    return with_options(method, {"batch_size": 50, "noise_multiplier": 0, "clip": math.inf})


def _slopes(run: Toy) -> np.ndarray[Any, Any]:
    update = run.federate(1, participation=1.0).update
    assert isinstance(update, Projected)
    return update.coefficients


@pytest.mark.parametrize("name", ["dpzero", "dp_aggzo"])
def test_without_noise_and_bound_it_is_mezo_on_the_same_batches(
    name: str, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All records of a device in every batch; what is left is the rounding of losses, 1e-7 over 2 eps a slope."""
    method = _all_records(METHODS[name])
    plain = with_options(method, {"estimate": "two_point", "sampling": "shuffled"})
    monkeypatch.setitem(METHODS, "open", method)
    monkeypatch.setitem(METHODS, "plain", plain)
    found, expected = _slopes(toy("open")), _slopes(toy("plain", run="b"))
    rate = method.learning_rate
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * rate)
    assert np.abs(expected).max() > 0.05 * rate


def test_every_record_is_in_a_batch_by_chance_and_a_batch_may_be_empty() -> None:
    share, steps = examples(0, 10), 3000
    seen, sizes = Counter[tuple[int, ...]](), Counter[int]()
    for batch in itertools.islice(Poisson().batches(share, 2, 0, seed=1, device=0), steps):
        assert batch.expected == 2
        assert batch.to(batch.input_ids.device).expected == 2
        rows = [tuple(row) for row in batch.input_ids.tolist()]
        assert len(set(rows)) == len(rows)
        seen.update(rows)
        sizes[len(rows)] += 1
    spread = math.sqrt(steps * 0.2 * 0.8)
    assert all(abs(seen[one.input_ids] - 0.2 * steps) < 5 * spread for one in share)
    for size in range(5):
        share_of = math.comb(10, size) * 0.2**size * 0.8 ** (10 - size)
        assert abs(sizes[size] / steps - share_of) < 5 * math.sqrt(share_of / steps)
    (whole,) = itertools.islice(Poisson().batches(share, 99, 0, seed=1, device=0), 1)
    assert (len(whole.input_ids), whole.expected) == (10, 10)


def test_what_is_heard_of_a_device_follows_from_its_turns_and_its_records() -> None:
    held, method = {0: 40, 1: 8, 2: 100}, METHODS["dpzero"]
    turns = Turns([0, 1, 2], 0.4, seed=3)
    asked = [turns.before(device, 31) for device in held]
    assert sum(asked) == 30
    found = releases_of(method, held, 30, 0.4, 3)
    assert found == [Releases(rate, 4 * count) for rate, count in zip((0.1, 0.5, 0.04), asked, strict=True)]
    several = with_options(method, {"directions_per_step": 5})
    assert [one.count for one in releases_of(several, held, 30, 0.4, 3)] == [20 * count for count in asked]
    together = releases_of(METHODS["dp_aggzo"], held, 30, 0.4, 3)
    assert [one.count for one in together] == [4 * count for count in asked]
    hidden = releases_of(METHODS["hidden_devices"], held, 30, 0.4, 3)
    assert hidden == [Releases(1.0, count) for count in asked]
    assert releases_of(METHODS["mezo"], held, 30, 0.4, 3) == []


SHORT = [
    "federation.rounds=2", "method.local_steps=2", "evaluation.samples=0", "evaluation.max_new_tokens=2",
    "data.records=60", "data.held_out=8", "data.calibration=8", "federation.workers=1",
]  # fmt: skip


def short(name: str, *more: str) -> Any:
    packaged = Path(edgetune.__file__).parent / "recipes" / f"{name}.toml"
    return load_recipe(packaged, [*SHORT, *more])


@pytest.mark.parametrize("single", [False, True])
def test_a_run_finds_the_noise_of_its_target_and_says_what_it_spends(tmp_path: Path, single: bool) -> None:
    pytest.importorskip("dp_accounting", reason="the extra `privacy` is not installed")
    told: list[Any] = []
    for _ in range(2):  # a complete run that is started again finds the same noise, and goes on where it was
        edgetune.run(short("dpzero"), tmp_path, stages=["base", "tune"], single=single, listener=told.append)
    first, second = (event for event in told if isinstance(event, Privacy))
    assert first == second
    assert 0.99 * 6 < first.epsilon <= 6
    assert first.releases == 4
    assert first.sampling_rate == pytest.approx(8 / 60 if single else 8 / 12)
    assert "epsilon 6 at delta 1e-05" in privacy_note(first)
    assert [event.round for event in told if isinstance(event, RoundFinished)] == [1, 2]
    assert read_summary(tmp_path).privacy == first


def test_noise_that_does_not_meet_the_target_is_refused_before_the_first_step(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="the extra `privacy` is not installed")
    with pytest.raises(ConfigError, match=r"spends epsilon = .* more than the 6 that is wanted"):
        edgetune.run(short("dpzero", "method.noise_multiplier=0.2"), tmp_path, stages=["base", "tune"])
    assert not (tmp_path / "events.jsonl").exists()


def test_a_device_alone_has_no_server_to_hide_it(tmp_path: Path) -> None:
    options = ["method.estimate=two_point", "method.sampling=shuffled", "method.aggregate=private_mean"]
    with pytest.raises(ConfigError, match="one device alone has none"):
        edgetune.run(short("dpzero", *options), tmp_path, stages=["base", "tune"], single=True)


def test_a_rate_is_not_looked_for_on_records_that_shall_be_hidden(tmp_path: Path) -> None:
    prepared = prepare(short("dpzero"))
    method = prepared.recipe.method.model_copy(update={"learning_rate": "auto"})
    model = prepared.recipe.model.model_copy(update={"source": "elsewhere"})
    recipe = prepared.recipe.model_copy(update={"method": method, "model": model})
    with pytest.raises(ConfigError, match=r"a range test reads records.*method\.learning_rate"):
        settle(replace(prepared, recipe=recipe), tmp_path / "events.jsonl", single=False, resumed=False)


def test_batches_of_ones_own_cannot_be_accounted_for() -> None:
    with pytest.raises(ConfigError, match="drawn by chance"):
        edgetune.Tuner("embedded", "dpzero", learning_rate=1e-3, eps=1e-3)


def test_devices_that_are_asked_to_spare_are_accounted_for() -> None:
    pytest.importorskip("dp_accounting", reason="the extra `privacy` is not installed")
    few = ["federation.rounds=6", "method.local_steps=9"]
    noise = [
        protect(prepare(short("dpzero", *few, f"federation.over_selection={over}")), single=False)[
            1
        ].noise_multiplier
        for over in (0, 2)
    ]
    assert noise[1] > noise[0]
