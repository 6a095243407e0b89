"""The benchmarks' arithmetic, and that the published loops they measure against do what they say."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from edgetune.bench import reference
from edgetune.bench import rows as bench_rows_module
from edgetune.bench.directions import bench_directions
from edgetune.bench.embedded import bench_embedded
from edgetune.bench.models import random_batch, random_llama
from edgetune.bench.moved import bench_moved
from edgetune.bench.rows import bench_rows, break_even
from edgetune.bench.step import bench_step
from edgetune.bench.timing import Ratio, compare, take_turns
from edgetune.cli import bench
from edgetune.cli.app import execute
from edgetune.core.batch import response_loss
from edgetune.directions import native
from edgetune.directions.kernel import VARIABLE, describe_kernel


def test_sides_take_turns() -> None:
    order: list[str] = []
    seconds = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("ab" * 4)
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_ratios_are_taken_round_by_round() -> None:
    row = compare({"a": [2.0, 4.0, 60.0], "b": [1.0, 2.0, 20.0]}, "a", "b", scale=0.5)
    assert row.ratio == pytest.approx(1.0)
    assert row.seconds == pytest.approx(2.0)
    assert row.low <= row.ratio <= row.high


def test_the_published_rebuild_is_the_sum_of_its_draws() -> None:
    terms = [(3, 0.5), (9, -2.0)]
    weights = [torch.zeros(7), torch.ones(2, 3)]
    reference.rebuild(weights, terms)
    expected = [torch.zeros(7), torch.ones(2, 3)]
    for seed, coefficient in terms:
        generator = torch.Generator().manual_seed(seed)
        for weight in expected:
            weight += coefficient * torch.normal(0.0, 1.0, weight.shape, generator=generator)
    assert all(torch.allclose(got, want) for got, want in zip(weights, expected, strict=True))


def test_the_published_step_moves_along_its_direction(tiny_model: Any) -> None:
    model, batch, eps, lr = tiny_model(), random_batch(2, 5, 100), 1e-3, 1e-2
    before = [weight.detach().clone() for weight in model.parameters()]
    slope = reference.step_in_place(model, batch, seed=4, eps=eps, lr=lr)
    after = [weight.detach().clone() for weight in model.parameters()]
    losses = []
    for sign in (1, -1):
        for weight, value in zip(model.parameters(), before, strict=True):
            weight.data.copy_(value)
        reference.draw_and_add([weight.data for weight in model.parameters()], 4, sign * eps)
        losses.append(float(response_loss(model, batch)))
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * eps), rel=0.02)
    moved = [weight.clone() for weight in before]
    reference.draw_and_add(moved, 4, -lr * slope)
    assert all(torch.allclose(got, want, atol=1e-6) for got, want in zip(after, moved, strict=True))


def test_the_suites_yield_positive_ratios() -> None:
    rows = [
        *bench_directions(weights=1 << 14, rounds=3, pool=64),
        *bench_step(random_llama(64, 192, 1, 1, 100), rounds=3),
        *bench_moved(random_llama(64, 192, 1, 1, 100), rounds=3),
    ]
    assert len(rows) >= 10
    assert all(0 < row.low <= row.ratio <= row.high for row in rows)


KERNELS = ["torch", *(f"c-{name}" for name in native.LEVELS[: native.best_level() + 1] if native.library())]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_can_be_measured(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, kernel)
    rows = [
        *bench_directions(weights=1 << 13, rounds=3, pool=64),
        *bench_step(random_llama(64, 192, 1, 1, 100), rounds=3),
        *bench_moved(random_llama(64, 192, 1, 1, 100), rounds=3),
        *bench_embedded(rounds=3, steps=1),
        *(bench_rows(64, 1, 100, rounds=3, counts=(2, 5)) if kernel != "torch" else ()),
    ]
    assert all(row.ratio > 0 for row in rows)
    assert any("streamed" in row.what for row in rows) == (kernel != "torch")
    assert sum("rank_one" in row.what and "step" in row.what for row in rows) == 9


def test_the_break_even_is_the_last_count_before_the_cache_loses() -> None:
    def rows(*ratios: float) -> list[Ratio]:
        return [Ratio("", ratio, ratio, ratio, 1.0, 1.0) for ratio in ratios]

    assert break_even((2, 8, 16), rows(0.5, 1.0, 1.01)) == 8
    assert break_even((2, 8, 16), rows(0.5, 1.2, 0.9)) == 2
    assert break_even((2, 8, 16), rows(1.1, 0.9, 0.9)) == 0
    assert break_even((2, 8, 16), rows(0.7, 0.8, 0.9)) == 16


def test_rows_need_the_compiled_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert execute(["bench", "rows", "--kernel", "torch"]) == 2
    assert "only the compiled kernel has two ways" in capsys.readouterr().err
    assert VARIABLE not in os.environ
    assert execute(["bench", "rows", "--kernel", "c-avx3"]) == 2
    assert "did you mean 'c-avx2'" in capsys.readouterr().err


@pytest.mark.skipif(native.library() is None, reason="no compiled kernel: no C compiler at install")
def test_the_command_says_what_to_pin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_rows_module, "COUNTS", (2, 5))
    monkeypatch.setitem(bench.SUITES, "rows", lambda: bench_rows(64, 1, 100, rounds=3, counts=(2, 5)))
    monkeypatch.setenv(VARIABLE, "torch")
    assert execute(["bench", "rows", "--kernel", "c-baseline"]) == 0
    printed = capsys.readouterr().out
    assert "kernel c (baseline, products of up to 16 rows)" in printed
    assert any(f"EDGETUNE_PRODUCT_ROWS={most}" in printed for most in (0, 2, 5))
    assert os.environ[VARIABLE] == "torch"


@pytest.mark.gpu
def test_directions_are_timed_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows = [*bench_directions(weights=1 << 16, rounds=3, pool=64, device="cuda")]
    assert all(0 < row.low <= row.ratio <= row.high for row in rows)


@pytest.mark.gpu
def test_steps_are_timed_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows = [
        *bench_step(random_llama(64, 192, 1, 1, 100), rounds=3, device="cuda"),
        *bench_embedded(rounds=3, steps=1, device="cuda"),
    ]
    assert all(row.ratio > 0 for row in rows)
    assert not any("streamed" in row.what for row in rows)


def test_a_device_that_cannot_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in [
        (["directions", "--device", "cuda"], "no CUDA device"),
        (["directions", "--device", "tpu"], "no device 'tpu'"),
    ]:
        assert execute(["bench", *options]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert execute(["bench", "rows", "--device", "cuda"]) == 2
    assert "runs on the CPU" in capsys.readouterr().err


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(bench.SUITES, "directions", lambda: bench_directions(1 << 14, 3, 64))
    assert execute(["bench", "directions", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernel"]
    figures = {"what", "ratio", "low", "high", "seconds", "other_seconds", "note"}
    for row in found["ratios"]:
        assert set(row) == figures | {"kernel", "torch", "threads"}
        assert (row["kernel"], row["torch"]) == (describe_kernel(), torch.backends.cpu.get_cpu_capability())
    assert execute(["bench", "direction"]) == 2
    assert "did you mean 'directions'" in capsys.readouterr().err
