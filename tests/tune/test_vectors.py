"""Norms, biases and embeddings are read at both points at once, with the bits of two readings, on every kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch, response_loss, response_losses
from edgetune.core.keys import pool_key
from edgetune.directions import Gaussian, Hadamard, Rademacher, native
from edgetune.directions.kernel import VARIABLE, compiled_level
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ProjectedTuned
from edgetune.tune.readers import EmbeddingReader, NormReader, Perturbation, VectorReader
from edgetune.updates import Sgd

KEY = pool_key(3)
FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
KERNELS = [f"c-{name}" for name in native.LEVELS[: native.best_level() + 1] if native.library()]
needs_kernel = pytest.mark.skipif(
    compiled_level() is None, reason="the compiled kernel is not built, or EDGETUNE_KERNEL asks for another"
)
BOTH = Perturbation(9, (0.02, -0.02), records=3)


def batch_of(records: int, length: int) -> Batch:
    ids = torch.randint(1, 90, (records, length), generator=torch.Generator().manual_seed(records))
    return Batch(ids, torch.ones_like(ids), torch.where(ids % 3 > 0, ids, -100))


def readers(tuned: ProjectedTuned, kind: type) -> list[Any]:
    return [reader for reader in tuned._readers if isinstance(reader, kind)]


def point_by_point(tuned: ProjectedTuned, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = []
    for half, scale in zip(x.chunk(2), BOTH.scales, strict=True):
        with torch.no_grad(), tuned.perturbed(BOTH.seed, scale):
            found.append(module(half))
    return torch.cat(found)


def at_once(tuned: ProjectedTuned, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    tuned.perturbation = BOTH
    try:
        y: torch.Tensor = module(x)
    finally:
        tuned.perturbation = None
    return y


class Mean(nn.Module):
    """Owns a vector that it does not multiply by: it broadcasts, but to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.mean()


class Picky(nn.LayerNorm):
    """Takes no vectors with a leading dimension, and is not torch's own."""


class Parent(Mean):
    """Owns a vector beside a child that reads its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x) * self.weight
        return y


class Scale(Mean):
    """What a norm of any family does in the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.weight) * x


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(64)], ids=str)
@pytest.mark.parametrize("shape", [(6, 5, 8), (12, 8), (6, 2, 3, 8)], ids=str)
def test_a_module_of_vectors_gives_at_once_what_two_calls_give(kind: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for module, broadcasts in [(Scale(), True), (Mean(), False), (Picky(8), False)]:
        tuned = ProjectedTuned(nn.Sequential(module), BoundSpace(kind, KEY))
        expected = point_by_point(tuned, module, x)
        for _ in range(2):  # the first call finds out, the second relies on it
            assert torch.equal(at_once(tuned, module, x), expected)
            (reader,) = readers(tuned, VectorReader)
            assert reader._broadcasts is broadcasts
        assert not torch.equal(*expected.chunk(2))


def test_a_vector_beside_children_is_read_point_by_point() -> None:
    module, x = Parent(), torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
    tuned = ProjectedTuned(nn.Sequential(module), BoundSpace(Rademacher(), KEY))
    assert not readers(tuned, VectorReader)
    expected = point_by_point(tuned, module, x)
    assert torch.allclose(at_once(tuned, module, x), expected, atol=1e-6)


@pytest.mark.parametrize("affine", ["both", "weight", "neither tuned"])
def test_norms_of_torch_are_normalised_once(affine: str) -> None:
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
    for module in (nn.LayerNorm(8, bias=affine != "weight"), nn.RMSNorm(8, eps=1e-5)):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(2))
        named = dict(nn.Sequential(module).named_parameters())
        if affine == "neither tuned" and len(named) > 1:
            named.pop("0.weight")
        tuned = ProjectedTuned(nn.Sequential(module), BoundSpace(Rademacher(), KEY), weights=named)
        assert len(readers(tuned, NormReader)) == 1
        expected = point_by_point(tuned, module, x)
        assert torch.allclose(at_once(tuned, module, x), expected, atol=1e-6)
        assert not torch.equal(*expected.chunk(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_norm_of_a_model_is_read_point_by_point(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    tuned.losses(response_loss, batch_of(3, 16), 9, (0.02, -0.02))
    norms = readers(tuned, VectorReader)
    assert len(norms) == sum("norm" in type(one).__name__.lower() for one in model.modules()) > 2
    assert all(norm._broadcasts for norm in norms)


@needs_kernel
def test_points_that_ask_for_other_tokens_get_their_own() -> None:
    table = nn.Embedding(50, 8).requires_grad_(False)
    tuned = ProjectedTuned(nn.Sequential(table), BoundSpace(Rademacher(), KEY))
    assert len(readers(tuned, EmbeddingReader)) == 1
    ids = torch.arange(30).view(6, 5)
    for asked in (ids, torch.cat([ids[:3], ids[:3]])):
        assert torch.equal(at_once(tuned, table, asked), point_by_point(tuned, table, asked))


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_walk_gives_the_losses_of_two_on_every_instruction_set(
    family: str, kernel: str, tiny_model: Any
) -> None:
    tuned = ProjectedTuned(tiny_model(family), BoundSpace(Hadamard(64), KEY))
    batch, expected = batch_of(2, 5), []
    for scale in (0.02, -0.02):
        with torch.no_grad(), tuned.perturbed(9, scale):
            expected.append(float(response_loss(tuned.model, batch)))
    assert tuned.losses(response_loss, batch, 9, (0.02, -0.02)) == pytest.approx(expected, abs=1e-5)
    assert tuned._stacks is True


@pytest.mark.skipif(len(KERNELS) < 3, reason="needs a processor with AVX-512, to compare it with AVX2")
def test_instruction_sets_with_fused_sums_tune_alike(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for kernel in KERNELS[1:]:
        monkeypatch.setenv(VARIABLE, kernel)
        tuned, batch = ProjectedTuned(tiny_model("qwen2"), BoundSpace(Rademacher(), KEY)), batch_of(2, 20)
        for key in range(5):
            Sgd(0.1).step(tuned, TwoPoint(1e-2)(tuned, response_loss, batch, key).update, {})
        found.append(tuned.state().coefficients.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_positions_that_carry_a_loss_are_asked_of_the_head(family: str, tiny_model: Any) -> None:
    model, batch = tiny_model(family), batch_of(3, 12)
    batch.labels[:, :5] = -100
    heads: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, y: heads.append(y.shape))
    with torch.no_grad():
        summed, counts = response_losses(model, batch)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    needed = int((batch.labels[:, 1:] != -100).any(dim=0).sum())
    assert [shape[1] for shape in heads] == [needed, 12]
    assert 0 < needed < 11
    for record in range(3):
        at = [place for place in range(1, 12) if batch.labels[record, place] != -100]
        log_p = logits[record].double().log_softmax(-1)
        by_hand = -sum(float(log_p[place - 1, batch.labels[record, place]]) for place in at)
        assert float(summed[record]) == pytest.approx(by_hand, rel=1e-5)
        assert int(counts[record]) == len(at)


def test_a_model_that_gives_all_logits_or_a_batch_without_a_response(tiny_model: Any) -> None:
    model, batch = tiny_model(), batch_of(2, 8)

    class Whole(nn.Module):
        def forward(self, **inputs: Any) -> Any:
            assert "logits_to_keep" not in inputs
            return model(**inputs)

    with torch.no_grad():
        assert torch.allclose(response_loss(Whole(), batch), response_loss(model, batch), rtol=1e-6)
        batch.labels[:] = -100
        assert float(response_loss(model, batch)) == 0
