"""Spectra of Hessians of which only products are known, by dense oracles; rules for how many layers are kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.keys import stream
from edgetune.data.encode import Example, collate
from edgetune.models.backbone import load_backbone
from edgetune.survey.curvature import Curvature
from edgetune.survey.keep import Density, Gap, below_the_gap, mass_above, settled_mass
from edgetune.survey.lanczos import Spectrum, lanczos
from edgetune.tune import Prefix


def batch_of(records: int = 3) -> Batch:
    return collate([Example((10 + at, 20, 30 + at, 7, 8, 0)[at % 2 :], 3) for at in range(records)], 0)


def curvature_of(model: Any) -> Curvature:
    tuned = Prefix(1, scale=0.5).open(model, None, 3)
    tuned.model.double()
    return Curvature(tuned, batch_of(), response_loss)


def dense_hessian(curvature: Curvature, shift: torch.Tensor | None = None) -> torch.Tensor:
    """Return the Hessian as torch forms it, column by column, of a model whose prefix is replaced."""
    ((_, weight),) = curvature.tuned.named_weights()
    owner = curvature.tuned.model.prompt_encoder.default.embedding
    start = weight.detach().reshape(-1)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        del owner.weight
        owner.weight = flat.view_as(weight)
        return response_loss(curvature.tuned.model, curvature.batch)

    with sdpa_kernel(SDPBackend.MATH):
        found = torch.autograd.functional.hessian(loss, start if shift is None else start + shift)
    del owner.weight
    owner.weight = weight
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lanczos_finds_the_eigenvalues_of_the_dense_hessian(family: str, tiny_model: Any) -> None:
    curvature = curvature_of(tiny_model(family, hidden=8, vocabulary=40))
    dense = torch.linalg.eigvalsh(dense_hessian(curvature)).numpy()
    found = curvature.spectrum(curvature.size)
    assert dense.max() > 1e-4
    assert len(found.values) == len(dense)
    assert np.allclose(found.values, dense, rtol=1e-4, atol=1e-4 * np.abs(dense).max())
    few = curvature.spectrum(max(6, curvature.size // 2))
    assert np.allclose(few.values[[0, -1]], dense[[0, -1]], atol=1e-4 * np.abs(dense).max())


def test_a_product_is_the_hessian_times_a_vector_and_moves_nothing(tiny_model: Any) -> None:
    curvature = curvature_of(tiny_model("llama", hidden=8, vocabulary=40))
    ((_, weight),) = curvature.tuned.named_weights()
    before, vector = weight.detach().clone(), torch.randn(curvature.size, dtype=torch.float64)
    product = curvature.products()
    assert torch.allclose(product(vector), dense_hessian(curvature) @ vector, atol=1e-9)
    assert torch.equal(product(vector), product(vector))
    assert torch.equal(weight.detach(), before)
    assert weight.requires_grad
    assert weight.grad is None


def test_a_product_is_a_difference_of_gradients_on_the_embedded_model() -> None:
    tuned = Prefix(2).open(load_backbone("embedded").model, None, 3)
    tuned.model.double()
    curvature, ((_, weight),) = Curvature(tuned, batch_of(), response_loss), tuned.named_weights()
    start, vector = weight.detach().clone(), torch.randn(curvature.size, dtype=torch.float64)

    def gradient(step: float) -> torch.Tensor:
        with torch.no_grad():
            weight.copy_(start + step * vector.view_as(weight))
        return torch.autograd.grad(response_loss(tuned.model, curvature.batch), [weight])[0].reshape(-1)

    expected = (gradient(1e-3) - gradient(-1e-3)) / 2e-3
    gradient(0.0)
    found = curvature.products()(vector)
    assert float(found.norm()) > 1e-3
    assert float((found - expected).norm() / found.norm()) < 1e-3  # its norms are computed in float32


def test_the_lipschitz_constant_is_the_norm_of_the_hessians_change(tiny_model: Any) -> None:
    curvature = curvature_of(tiny_model("llama", hidden=8, vocabulary=40))
    shift = 0.3 * torch.from_numpy(stream(0, "curvature", "shift").standard_normal(curvature.size))
    change = dense_hessian(curvature, shift) - dense_hessian(curvature)
    expected = float(torch.linalg.matrix_norm(change, 2))
    assert curvature.lipschitz(0.3, curvature.size) == pytest.approx(expected, rel=1e-6)
    assert curvature.lipschitz(0.3, 4) <= expected * (1 + 1e-9)


def product_of(values: list[float]) -> Any:
    diagonal = torch.tensor(values, dtype=torch.float64)
    return lambda vector: diagonal * vector


def test_weights_are_the_shares_of_degenerate_eigenvalues_and_the_search_ends() -> None:
    start = torch.ones(100, dtype=torch.float64)
    flat = lanczos(product_of([2.0] * 100), start, 50)
    assert (flat.values.tolist(), flat.errors.tolist()) == ([pytest.approx(2)], [0.0])
    assert flat.weights.tolist() == [1.0]
    two = lanczos(product_of([0.0] * 70 + [1.0] * 30), start, 50)
    assert np.allclose(two.values, [0, 1], atol=1e-12)
    assert np.allclose(two.weights, [0.7, 0.3])
    zero = lanczos(product_of([0.0] * 100), start, 50)
    assert zero.values.tolist() == [0.0]


def test_no_eigenvalue_is_found_twice() -> None:
    values = np.concatenate([np.linspace(0, 1, 190), [1e3, 1e4]])
    found = lanczos(product_of(list(values)), torch.ones(192, dtype=torch.float64), 120)
    assert (found.values > 100).sum() == 2
    assert np.allclose(found.values[-2:], [1e3, 1e4])
    assert found.weights.sum() == pytest.approx(1)


def spectrum(*values: float, errors: float = 0.0) -> Spectrum:
    count = len(values)
    return Spectrum(np.sort(np.array(values)), np.full(count, 1 / count), np.full(count, errors))


def test_the_gap_rule_keeps_what_lies_below_the_first_gap_above_four_lipschitz_constants() -> None:
    ten = spectrum(*(0.01 * at for at in range(6)), 1.0, 1.01, 5.0, 5.01)
    assert below_the_gap(ten, 0.2) == pytest.approx(0.6)
    assert below_the_gap(ten, 0.5) == pytest.approx(0.8)
    assert below_the_gap(ten, 1.0) == 1.0
    assert below_the_gap(ten, 0.001) == pytest.approx(0.1)


def test_a_gap_between_values_that_did_not_converge_is_none() -> None:
    assert below_the_gap(spectrum(0, 1, 5, errors=0.1), 0.1) == 1.0
    assert below_the_gap(spectrum(1, 1, 1), 0.0) == 1.0
    assert below_the_gap(spectrum(3.0), 0.0) == 1.0
    assert math.isnan(below_the_gap(spectrum(1.0, math.nan), 0.1))
    assert math.isnan(below_the_gap(spectrum(1.0, 2.0), math.nan))


def test_the_density_rule_is_the_mass_above_a_threshold_that_settles() -> None:
    assert settled_mass(spectrum(-3, -2, -1, 1, 2, 3)) == pytest.approx(0.5)
    assert settled_mass(spectrum(-1, -1, -1, 4)) == pytest.approx(0.25)
    assert settled_mass(spectrum(1, 2, 3)) == pytest.approx(1)


def reference_mass(values: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], threshold: float) -> float:
    """The reference's density: gaussians summed over a fine grid, one minus the mass below."""
    grid = np.linspace(values.min() - 0.01, values.max() + 0.01, 200_000)
    variance = 1e-5 * max(1, grid[-1] - grid[0])
    density = sum(
        w * np.exp(-((v - grid) ** 2) / (2 * variance)) for v, w in zip(values, weights, strict=True)
    )
    return float(1 - density[grid <= threshold].sum() / density.sum())


def test_the_mass_is_the_integral_of_the_references_density() -> None:
    generator = np.random.default_rng(0)
    values = np.sort(generator.normal(0, 2, 40))
    values[[0, -1]] *= 2
    weights = generator.dirichlet(np.ones(40))
    weights[[0, -1]] = 0.0  # there the gaussians of both ends are cut off
    weights /= weights.sum()
    known = Spectrum(values, weights, np.zeros(40))
    for threshold in (-2.0, 0.0, 0.3, 1.7):
        expected = reference_mass(values, weights, threshold)
        assert mass_above(known, threshold) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [0.0] * 9,
        [1e-9, -1e-9],
        [0.05],
        [-1.0],
        [-5.0, -4.0],
        [1e12, -1e12],
        list(np.linspace(0, 1, 99)),
    ],
)
def test_the_density_rule_ends_on_any_spectrum(values: list[float]) -> None:
    ratio = settled_mass(spectrum(*values))
    assert 0 <= ratio <= 1
    assert ratio >= 0.49 * mass_above(spectrum(*values), 0.0)
    assert math.isnan(settled_mass(spectrum(math.nan)))


@pytest.mark.parametrize("rule", [Gap(), Density()])
def test_a_rule_of_a_real_loss_is_a_share(rule: Any, tiny_model: Any) -> None:
    curvature = curvature_of(tiny_model("llama", hidden=8, vocabulary=40))
    assert 0 <= rule.ratio(curvature, 8) <= 1


def test_a_lipschitz_constant_at_no_distance_is_refused() -> None:
    with pytest.raises(ConfigError, match="distance above 0"):
        Gap(0.0)
