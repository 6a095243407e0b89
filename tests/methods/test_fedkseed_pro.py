"""FedKSeed-Pro: probabilities follow from the slopes' amplitudes, alike at both ends, and uniform ones are FedKSeed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from served import SEED, messages_of, reply_of, server_of, state_of

from edgetune.aggregate import MeanAmplitudes
from edgetune.core.errors import DigestError
from edgetune.core.update import Projected, Update, Weighed
from edgetune.directions.weighted import WeightedPool, probabilities
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import defaults, with_options
from edgetune.wire import Log8, Table

K = 32
METHOD = with_options(tuning_method("fedkseed_pro"), {"pool": K, "local_steps": 6, "learning_rate": 0.01})
PLAIN = with_options(tuning_method("fedkseed"), {"pool": K, "local_steps": 6, "learning_rate": 0.01})
NAN = float("nan")


def weighed(amplitudes: list[float]) -> Weighed:
    count = len(amplitudes)
    return Weighed(np.arange(count), np.zeros(count, np.float32), np.array(amplitudes, np.float32))


def test_the_published_defaults() -> None:
    method, plain = (defaults(tuning_method(name)) for name in ("fedkseed_pro", "fedkseed"))
    same = ("pool", "local_steps", "batch_size", "eps", "learning_rate")
    assert [method[name] for name in same] == [plain[name] for name in same] == [4096, 200, 1, 5e-4, 3e-7]
    assert method["corrected"] is False
    assert MeanAmplitudes().clip == 1000


def test_probabilities_are_the_softmax_of_normalised_amplitudes() -> None:
    amplitudes = np.random.default_rng(0).gamma(1.0, 3.0, K).astype(np.float32)
    unit = (amplitudes - amplitudes.min()) / (amplitudes.max() - amplitudes.min())
    exact = np.exp(unit) / np.exp(unit).sum()
    found = probabilities(amplitudes)
    assert found == pytest.approx(exact, rel=0.004)  # half a grade of 255
    assert found.max() / found.min() == pytest.approx(np.e, rel=1e-6)
    assert probabilities(np.zeros(K, np.float32)) == pytest.approx(1 / K)


def test_directions_are_drawn_with_their_probabilities() -> None:
    state = weighed([0.0, 1, 2, 5])
    pool = WeightedPool(METHOD.directions.kind.__class__(4), 4)  # type: ignore[union-attr]
    drawn = np.bincount(pool.draw(SEED, 1, 0, 40_000, state=state), minlength=4) / 40_000
    assert drawn == pytest.approx(probabilities(state.amplitudes), abs=0.008)
    pairs = np.array(pool.draw(SEED, 1, 0, 500, 3, state=state)).reshape(500, 3)
    assert all(len(set(step)) == 3 for step in pairs.tolist())


def test_uniform_probabilities_are_fedkseed_step_for_step() -> None:
    flat = replace(METHOD, aggregate=MeanAmplitudes(clip=0.0))
    pro, plain, rng = (
        server_of(flat, participation=0.1),
        server_of(PLAIN, participation=0.1),
        np.random.default_rng(4),
    )
    for round in range(1, 4):
        (only,) = pro.sample()
        assert plain.sample() == [only]
        keys = flat.keys(SEED, round, only, pro.state)
        assert keys == PLAIN.keys(SEED, round, only)
        slopes = rng.choice([-2.0, 0.5, 4.0], 6)
        pro.close_round({only: reply_of(pro, only, slopes.tolist())})
        change = PLAIN.local.change(Projected(np.array(keys), slopes.astype(np.float32)), [1.0] * 6)
        plain.state = plain.method.down.settle((state_of(plain) + change.merged()).merged())
        plain.round += 1
        both = [np.zeros(K, np.float32), np.zeros(K, np.float32)]
        for table, server in zip(both, (pro, plain), strict=True):
            np.add.at(table, state_of(server).keys, state_of(server).coefficients)
        assert np.array_equal(*both)


def test_amplitudes_are_means_of_clipped_slopes_and_the_zero_that_every_history_begins_with() -> None:
    server = server_of(METHOD, participation=0.5)
    sums, counts = np.zeros(K), np.zeros(K)
    for _ in range(3):
        told = {id: [3.0, -1, 4e4, NAN, 0.25, -2000] for id in server.sample()}
        for id, slopes in told.items():
            for key, slope in zip(METHOD.keys(SEED, server.round + 1, id, server.state), slopes, strict=True):
                if slope == slope:
                    sums[key] += min(abs(float(np.float16(slope))), 1000)
                    counts[key] += 1
        server.close_round({id: reply_of(server, id, one) for id, one in told.items()})
    assert server.memory["sums"].numpy() == pytest.approx(sums)
    assert server.memory["counts"].tolist() == counts.tolist()
    assert isinstance(server.state, Weighed)
    exact = (sums / (1 + counts)).astype(np.float32)
    assert server.state.amplitudes.tolist() == Log8().settle(exact).tolist()
    assert len({*server.state.amplitudes.tolist()}) > 2


def test_a_device_draws_what_the_server_thinks_it_draws_whatever_it_had_missed() -> None:
    server = server_of(METHOD)
    messages, states = messages_of(METHOD), dict[int, Update]({0: server.state})
    rng = np.random.default_rng(0)
    for round in range(1, 5):
        server.close_round({id: reply_of(server, id, rng.normal(0, 5, 6).tolist()) for id in server.sample()})
        states[round] = server.state
    for since in range(5):
        (payload,) = set(server.open_round(dict.fromkeys(range(6), since)).values())
        _, state, named = messages.read(payload, states, None)
        assert isinstance(state, Weighed)
        assert METHOD.keys(SEED, 5, 2, state) == METHOD.keys(SEED, 5, 2, server.state)
        assert named == messages.ticket(5, server.state)
    assert METHOD.keys(SEED, 5, 2, server.state) != METHOD.keys(SEED, 5, 2)


def test_a_message_that_gives_other_amplitudes_is_refused() -> None:
    server = server_of(METHOD)
    server.close_round({id: reply_of(server, id, [1.0, 2, 3, 4, 5, 6]) for id in server.sample()})
    messages, state = messages_of(METHOD), server.state
    assert isinstance(state, Weighed)
    other = Weighed(state.keys, state.coefficients, state.amplitudes[::-1].copy())
    assert messages.ticket(2, other) != messages.ticket(2, state)
    body = METHOD.down.encode(state, messages._known(1, 0, None))
    for wrong in (body[:3], body[:-1], body + b"\0", b"\xff" * 4 + body[4:]):
        with pytest.raises(DigestError):
            METHOD.down.decode(wrong, messages._known(1, 0, None))


def test_the_corrected_form_divides_a_step_by_k_times_its_probability_and_is_unbiased() -> None:
    state = weighed([0.0, 1, 2, 5])
    pool = WeightedPool(METHOD.directions.kind.__class__(4), 4, corrected=True)  # type: ignore[union-attr]
    slopes, chances = np.array([3.0, -1, 2, 7], np.float32), probabilities(state.amplitudes)
    corrected = pool.corrected_for(Projected(np.arange(4), slopes), state).coefficients
    assert corrected == pytest.approx(slopes / (4 * chances), rel=1e-6)
    assert chances @ corrected == pytest.approx(slopes.mean())
    published = replace(pool, corrected=False).corrected_for(Projected(np.arange(4), slopes), state)
    assert published.coefficients.tolist() == slopes.tolist()
    assert abs(chances @ slopes - slopes.mean()) > 0.3


def test_the_server_takes_the_corrected_steps_that_devices_took() -> None:
    method = with_options(METHOD, {"corrected": True})
    keys, state = [3, 5, 3], weighed([float(index % 7) for index in range(K)])
    slopes = Projected(np.array(keys), np.array([1.0, -2, 4], np.float32))
    chances = probabilities(state.amplitudes)
    change = method.change(slopes, 1, keys, state)
    assert change.coefficients == pytest.approx(-0.01 * slopes.coefficients / (K * chances[keys]), rel=1e-6)


def test_amplitudes_cost_a_byte_a_direction_and_less_for_who_was_there() -> None:
    method = tuning_method("fedkseed_pro")
    server = server_of(method, devices=200, participation=0.05)
    rng, sizes = np.random.default_rng(0), []
    for _ in range(6):
        up = {id: reply_of(server, id, rng.normal(0, 5, 200).tolist()) for id in server.sample()}
        server.close_round(up)
        newcomer = len(next(iter(server.open_round().values())))
        there = len(next(iter(server.open_round(dict.fromkeys(range(200), server.round)).values())))
        before = len(next(iter(server.open_round(dict.fromkeys(range(200), server.round - 1)).values())))
        sizes.append((newcomer, before, there, max(map(len, up.values()))))
    print("newcomer, there the round before, nothing missed, up:", sizes)
    bound = 34 + STATE_HEAD.size + 4 + 2 * 6 + 3 * 4096
    assert max(one[0] for one in sizes) <= bound
    assert max(one[1] for one in sizes[1:]) <= 0.6 * bound
    assert sizes[-1][3] <= 34 + 30 + 1 + 2 * 200
    assert isinstance(method.down, Table)
