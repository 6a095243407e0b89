"""Where low-rank factors begin: as the base, each by its oracle, whatever else draws or decomposes beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.residual import RESIDUAL, pairs
from edgetune.core.update import Dense
from edgetune.data.encode import Example, collate
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.digest import tensor_digest
from edgetune.tune import Lora, release
from edgetune.tune.initialisers import stored
from edgetune.tune.targets import INITIALISERS

RANK, ALPHA, SEED = 4, 6.0, 7
SCALE = ALPHA / RANK
SHIPPED = [name for name, one in INITIALISERS.items() if one is not None]
each = pytest.mark.parametrize("name", SHIPPED)
families = pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])


def sample(count: int = 3, records: int = 8) -> list[Batch]:
    draw = np.random.default_rng(2)
    rows = [draw.integers(1, 90, 24).tolist() for _ in range(count * records)]
    examples = [Example(tuple(row), 8) for row in rows]
    return [collate(examples[first : first + records], 0) for first in range(0, len(rows), records)]


def begun(model: Any, name: str, batches: list[Batch] | None = None, rank: int = RANK) -> tuple[Any, Dense]:
    """Return the handle at its start, and that start."""
    target = Lora(rank, ALPHA, initialiser=name)
    tuned = target.open(model, None, SEED)
    state = target.start(tuned, SEED, sample() if batches is None else batches)
    tuned.begin(state)
    return tuned, state


def factors(state: Dense) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {stem: (state.tensors[b], state.tensors[a]) for stem, (b, a) in pairs(state.tensors).items()}


def logits(model: Any) -> torch.Tensor:
    batch = sample()[0]
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return found


def span(rows: torch.Tensor) -> torch.Tensor:
    """Return the projection on the space of some rows."""
    q = torch.linalg.qr(rows.T.double()).Q
    return q @ q.T


@families
@each
def test_a_run_begins_as_the_base_and_leaves_it_as_it_was(name: str, family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    before, plain, drawn = tensor_digest(model.named_parameters()), logits(model), torch.get_rng_state()
    tuned, state = begun(model, name)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (logits(tuned.model) - plain).abs().max() < 1e-5
    assert any(bool(right.any()) for _, right in factors(state).values())
    taken_off = any(RESIDUAL.fullmatch(tensor) for tensor in state.tensors)
    assert taken_off != all(float((b @ a).abs().max()) < 1e-6 for b, a in factors(state).values())
    noise = {key: torch.full_like(one, 0.1) for key, one in tuned.named_weights()}
    tuned.apply(Dense(noise))
    assert (logits(tuned.model) - plain).abs().max() > 1e-3
    tuned.reset(None)
    assert (logits(tuned.model) - plain).abs().max() < 1e-5
    assert {key: one.tolist() for key, one in tuned.state().tensors.items()} == {
        key: one.tolist() for key, one in state.tensors.items()
    }
    release(tuned)
    assert tensor_digest(model.named_parameters()) == before
    assert not any(key.startswith("_peft") for module in model.modules() for key in vars(module))


@each
def test_the_start_is_the_same_whatever_was_drawn_before(name: str, tiny_model: Any) -> None:
    first = begun(tiny_model(), name)[1]
    torch.rand(17)
    assert tensor_digest(begun(tiny_model(), name)[1].tensors.items()) == tensor_digest(first.tensors.items())


@families
def test_pissa_tunes_the_best_approximation_of_the_weights(family: str, tiny_model: Any) -> None:
    tuned, state = begun(tiny_model(family), "pissa")
    for stem, (left, right) in factors(state).items():
        tuned.placed.carry({})
        weight = stored(tuned.placed.model.get_submodule(stem)).double().numpy()
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        best = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
        assert np.abs(SCALE * (left @ right).numpy() - best).max() < 1e-5 * max(1, s[0])


@families
def test_the_first_factor_of_olora_is_orthonormal_and_of_the_weights_columns(
    family: str, tiny_model: Any
) -> None:
    tuned, state = begun(tiny_model(family), "olora")
    tuned.placed.carry({})
    for stem, (left, right) in factors(state).items():
        weight = stored(tuned.placed.model.get_submodule(stem))
        assert (left.T @ left - torch.eye(RANK)).abs().max() < 1e-5
        assert (left @ right[:, :RANK] - weight[:, :RANK]).abs().max() < 1e-5  # Q R, column by column
        q = np.linalg.qr(weight.double().numpy())[0][:, :RANK]
        assert np.abs(np.abs((left.numpy() * q).sum(0)) - 1).max() < 1e-4


def test_orthogonal_factors_are_large_and_their_product_is_not(tiny_model: Any) -> None:
    for left, right in factors(begun(tiny_model(), "orthogonal")[1]).values():
        assert min(float(left.std()), float(right.std())) > 0.03
        assert (left @ right).abs().max() < 1e-6
        inner = right @ right.T  # rows lie in a half of the rank's space
        assert torch.linalg.matrix_rank(inner, rtol=1e-4) == torch.linalg.matrix_rank(
            left.T @ left, rtol=1e-4
        )
        assert torch.linalg.matrix_rank(inner, rtol=1e-4) == RANK // 2


def test_gaussian_factors_have_the_deviation_of_one_over_the_rank(tiny_model: Any) -> None:
    pieces = [right.flatten() for _, right in factors(begun(tiny_model(), "gaussian")[1]).values()]
    values = torch.cat(pieces)
    assert abs(float(values.std()) * RANK - 1) < 5 / (2 * len(values)) ** 0.5


@families
def test_eva_spans_where_a_layers_inputs_vary_most(family: str, tiny_model: Any) -> None:
    model, one = tiny_model(family), sample(1, 16)
    inputs: dict[str, torch.Tensor] = {}
    said = one[0].labels != -100
    tuned, state = begun(model, "eva", one)
    hooks = [
        tuned.placed.model.get_submodule(stem).register_forward_pre_hook(
            lambda _, given, stem=stem: inputs.update({stem: given[0][said]})
        )
        for stem in factors(state)
    ]
    with torch.no_grad():
        tuned.model(input_ids=one[0].input_ids, attention_mask=one[0].attention_mask)
    for hook in hooks:
        hook.remove()
    for stem, (left, right) in factors(state).items():
        assert not left.any()
        centred = (inputs[stem] - inputs[stem].mean(0)).double()
        s = torch.linalg.svdvals(centred)
        caught = float((centred @ span(right)).norm() ** 2)
        best = float((s[:RANK] ** 2).sum())
        assert 0.98 * best < caught < 1.0001 * best  # peft's decomposition is randomised
        assert (right @ right.T - torch.eye(RANK)).abs().max() < 1e-3


def by_hand(model: Any, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Return the mean gradient of batches by every matrix of a model."""
    for weight in model.parameters():
        weight.requires_grad_(weight.ndim == 2)
    for batch in batches:
        response_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    found = {name: one.grad / len(batches) for name, one in model.named_parameters() if one.grad is not None}
    model.requires_grad_(False)
    return found


@families
def test_the_first_step_of_lora_ga_goes_where_all_weights_would_go(family: str, tiny_model: Any) -> None:
    gradients = by_hand(tiny_model(family), sample())
    shares = {name: list[float]() for name in ("default", "lora_ga")}
    for name, found in shares.items():
        tuned, state = begun(tiny_model(family), name)
        for stem, (left, right) in factors(state).items():
            layer = tuned.placed.model.get_submodule(stem)
            full = gradients[f"{stem.removeprefix('base_model.model.')}.weight"].double()
            full = full.T if layer.fan_in_fan_out else full
            step = SCALE**2 * (
                full @ right.T.double() @ right.double() + left.double() @ (left.T.double() @ full)
            )
            found.append(float((step * full).sum() / step.norm() / full.norm()))
            if name == "lora_ga":
                u, s, v = torch.linalg.svd(full)
                assert (span(right) @ v[:RANK].T.double() - v[:RANK].T).norm() < 0.02
                kept = left.double().norm(dim=0)
                wanted = u[:, RANK : 2 * RANK] * s[RANK : 2 * RANK] * full.shape[0] ** 0.25 / 4
                assert kept.numpy() == pytest.approx(wanted.norm(dim=0).numpy(), rel=0.02)
                top = (s[:RANK] ** 2).sum().sqrt() / full.norm()
                assert found[-1] > 0.98 * float(top)  # as good as the best step of that rank, or better
    assert np.mean(shares["lora_ga"]) > 2 * np.mean(shares["default"])


@pytest.mark.parametrize("name", ["eva", "lora_ga"])
def test_what_looks_at_records_says_so_if_there_are_none(name: str, tiny_model: Any) -> None:
    with pytest.raises(ConfigError, match="sample of the server's own") as error:
        begun(tiny_model(), name, [])
    assert "calibration" in str(error.value.where)


def test_activations_that_do_not_settle_end_in_a_sentence(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.tune.informed.MOST_PASSES", 1)
    with pytest.raises(ModelError, match="did not settle in 1 pass"):
        begun(tiny_model(), "eva")


@pytest.mark.parametrize("name", ["pissa", "olora", "lora_ga"])
def test_a_layer_that_is_too_small_for_the_rank_is_named(name: str, tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="few directions"):
        begun(tiny_model(), name, rank=40)


def test_an_odd_rank_is_refused_where_halves_are_needed() -> None:
    with pytest.raises(ConfigError, match="multiple of 2"):
        Lora(3, 4.0, initialiser="orthogonal")


def test_what_cannot_work_is_refused_by_one_sentence() -> None:
    with pytest.raises(ConfigError, match="initialiser pissa needs dense gradients"):
        with_options(tuning_method("mezo_lora"), {"initialiser": "pissa"})
    with pytest.raises(ConfigError, match="initialiser eva does not go with a first factor that stays"):
        with_options(tuning_method("fedit"), {"initialiser": "eva", "aggregate": "ffa"})
    with pytest.raises(ConfigError, match="no initialiser called 'pisa'") as error:
        with_options(tuning_method("lora"), {"initialiser": "pisa"})
    assert "pissa" in str(error.value.hint)


def test_another_initialiser_is_another_method() -> None:
    digests = {with_options(tuning_method("lora"), {"initialiser": name}).digest for name in INITIALISERS}
    assert len(digests) == len(INITIALISERS)
