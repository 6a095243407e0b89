"""Grids under a size, against trying all combinations."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.compress.allocation import Choice, allocate
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.sensitivity import choices
from edgetune.core.errors import ConfigError
from edgetune.core.quantised import GRIDS, IQ4_NL, Q4_0, Q5_0, Q8_0

from .problems import tiny

OPTIONS = st.lists(
    st.builds(Choice, st.just("g"), st.integers(1, 200), st.floats(0, 1)), min_size=1, max_size=4
)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(each=st.lists(OPTIONS, min_size=1, max_size=5), budget=st.integers(1, 900))
def test_no_combination_that_fits_loses_less(each: list[list[Choice]], budget: int) -> None:
    named = {f"w{place}": options for place, options in enumerate(each)}
    fitting = [
        sum(one.loss for one in combination)
        for combination in itertools.product(*each)
        if sum(one.size for one in combination) <= budget
    ]
    if not fitting:
        with pytest.raises(ConfigError, match=r"size: the smallest file needs"):
            allocate(named, budget)
        return
    found = allocate(named, budget)
    assert list(found) == list(named)
    assert all(found[name] in named[name] for name in named)
    assert sum(one.size for one in found.values()) <= budget
    assert sum(one.loss for one in found.values()) == pytest.approx(min(fitting))


def test_large_sizes_are_counted_in_parts_and_never_exceed_the_budget() -> None:
    luck = torch.Generator().manual_seed(0)
    named = {
        f"w{place}": [
            Choice(name, int(size * grid.bits), float(2.0 ** (-2 * grid.bits)) * size)
            for name, grid in GRIDS.items()
        ]
        for place, size in enumerate(torch.randint(10**5, 10**7, (100,), generator=luck).tolist())
    }
    weights = sum(each[-1].size / GRIDS["Q8_0"].bits for each in named.values())
    for bits in (2.7, 4.5, 6.0):
        budget = int(bits * weights)
        used = sum(one.size for one in allocate(named, budget).values())
        assert 0.98 * budget < used <= budget


def test_what_is_measured_is_one_matrix_rounded_and_everything_else_as_it_was(
    calibration: list[torch.Tensor],
) -> None:
    model = tiny("llama")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    seen: list[list[str]] = []

    def changed() -> float:
        seen.append(
            [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
        )
        return 0.5

    found = choices(model, calibration, changed, grids=[IQ4_NL, Q4_0, Q5_0, Q8_0])
    assert seen == [[name] for name in found]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" in found
    for name, each in found.items():
        sizes = {one.grid: one.size for one in each}
        assert sizes["Q8_0"] == before[name].numel() // 32 * 34
        losses = {one.grid: one.loss for one in each}
        assert losses["Q8_0"] < losses["Q5_0"] < losses["Q4_0"]
        # The probe is the finest up to 4.6 bits, and costs what was measured.
        assert min(abs(loss - 0.5) for loss in losses.values()) < 1e-9


def test_without_text_errors_are_those_of_the_weights() -> None:
    model = tiny("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    weights = model.get_parameter(name).detach()
    (found,) = [
        each for one, each in choices(model, (), lambda: 1.0, grids=[Q4_0, Q5_0]).items() if one == name
    ]
    errors = [
        float((round_to_nearest(weights, grid, LeastError()).dequantise() - weights).square().sum())
        for grid in (Q4_0, Q5_0)
    ]
    assert found[1].loss / found[0].loss == pytest.approx(errors[1] / errors[0], rel=1e-4)


def test_matrices_that_no_grid_fits_are_left_out() -> None:
    assert not choices(tiny("llama"), (), lambda: 1.0, grids=[GRIDS["Q4_K"]])
