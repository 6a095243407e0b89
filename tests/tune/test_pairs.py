"""Both points of a step in one walk of the model: the same losses as in two walks, whatever the model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Hadamard, Rademacher
from edgetune.directions.kernel import compiled_level
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ProjectedTuned, StreamedTuned
from edgetune.updates import Sgd

KEY = pool_key(3)
FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
pytestmark = pytest.mark.skipif(
    compiled_level() is None, reason="the compiled kernel is not built, or EDGETUNE_KERNEL asks for another"
)


def batch_of(records: int, length: int) -> Batch:
    """Unequal lengths, right-padded."""
    ids = torch.randint(1, 90, (records, length), generator=torch.Generator().manual_seed(records))
    mask = torch.ones_like(ids)
    for record in range(1, records):
        mask[record, length - record :] = 0
    return Batch(ids, mask, torch.where(mask == 1, ids, -100))


def alone(tuned: ProjectedTuned, batch: Batch, seed: int, scale: float) -> float:
    with torch.no_grad(), tuned.perturbed(seed, scale):
        return float(response_loss(tuned.model, batch))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Rademacher(), Hadamard(64)], ids=str)
@pytest.mark.parametrize("records", [1, 3])
def test_one_walk_gives_the_losses_of_two(family: str, kind: Any, records: int, tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model(family), BoundSpace(kind, KEY))
    batch = batch_of(records, 16)
    expected = [alone(tuned, batch, 9, scale) for scale in (0.02, -0.02)]
    assert abs(expected[0] - expected[1]) > 1e-3
    for _ in range(2):  # the first call compares, the second relies on it
        assert tuned.losses(response_loss, batch, 9, (0.02, -0.02)) == pytest.approx(expected, abs=1e-5)
    assert tuned._stacks is True


def test_a_large_batch_and_other_objectives_go_point_by_point(tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    large, small = batch_of(4, tuned.few // 4 + 1), batch_of(1, 16)
    expected = [alone(tuned, large, 9, scale) for scale in (0.02, -0.02)]
    assert tuned.losses(response_loss, large, 9, (0.02, -0.02)) == expected
    seen = []

    def twice(model: Any, batch: Batch) -> torch.Tensor:
        seen.append(len(batch.input_ids))
        return 2 * response_loss(model, batch)

    tuned.losses(twice, small, 9, (0.02, -0.02))
    assert seen == [1, 1]


def test_a_model_that_mixes_its_records_is_found_out(tiny_model: Any) -> None:
    model = tiny_model()
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    batch, head = batch_of(2, 16), model.lm_head
    in_order = head.forward
    head.forward = lambda x: in_order(x.flip(0)).flip(0)  # the last record is read first
    expected = [alone(tuned, batch, 9, scale) for scale in (0.02, -0.02)]
    assert tuned.losses(response_loss, batch, 9, (0.02, -0.02)) == expected
    assert tuned._stacks is False


def test_a_mixture_of_experts_gets_the_losses_of_two_walks() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
            )
        )  # fmt: skip
    tuned = ProjectedTuned(model.eval().requires_grad_(False), BoundSpace(Rademacher(), KEY))
    batch = batch_of(3, 16)
    expected = [alone(tuned, batch, 9, scale) for scale in (0.02, -0.02)]
    assert tuned.losses(response_loss, batch, 9, (0.02, -0.02)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_that_ride_along_leave_the_bits_of_steps_taken_at_once(family: str, tiny_model: Any) -> None:
    space = BoundSpace(Rademacher(), KEY)
    tuned, at_once = (ProjectedTuned(tiny_model(family), space) for _ in range(2))
    batch, estimate = batch_of(1, 16), TwoPoint(1e-2)
    for key in range(4):
        update = estimate(tuned, response_loss, batch, key).update
        again = estimate(at_once, response_loss, batch, key).update
        assert isinstance(update, Projected)
        assert isinstance(again, Projected)
        assert update.coefficients.tolist() == again.coefficients.tolist()
        Sgd(0.1).step(tuned, update, {})
        Sgd(0.1).step(at_once, again, {})
        assert tuned.pending
        for name in list(at_once.pending):
            at_once.settle(name)
        assert not at_once.pending
    plain = {name: weight.clone() for name, weight in tuned.named_weights()}
    assert not tuned.pending
    for name, weight in at_once.named_weights():
        assert torch.equal(weight, plain[name])


def test_whoever_reads_the_weights_sees_every_step(tiny_model: Any) -> None:
    batch = batch_of(2, 16)
    losses = []
    for read in ("model", "module", "embedding", "reset"):
        model = tiny_model("qwen2")  # tied embeddings
        tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
        tuned.apply(Projected.of(4, 0.05))
        assert "model.embed_tokens.weight" in tuned.pending
        if read == "reset":
            tuned.reset(tuned.state())
        with torch.no_grad():
            if read == "embedding":
                losses.append(tuned.losses(response_loss, batch, 9, (0.0, 0.0))[0])
            else:
                losses.append(float(response_loss(tuned.model if read == "model" else model, batch)))
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)
    assert (
        abs(
            losses[0] - alone(ProjectedTuned(tiny_model("qwen2"), BoundSpace(Rademacher(), KEY)), batch, 9, 0)
        )
        > 1e-3
    )


def test_a_loss_that_is_not_a_number_is_passed_on(tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    batch = batch_of(1, 16)
    assert all(loss != loss for loss in tuned.losses(response_loss, batch, 9, (float("nan"), float("nan"))))
    assert all(loss == loss for loss in tuned.losses(response_loss, batch, 9, (0.02, -0.02)))


def test_positions_that_belong_to_no_record_are_not_cut(tiny_model: Any) -> None:
    class Positions(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.table = inner, torch.nn.Embedding(64, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.inner(ids) + self.table(torch.arange(ids.shape[1]))  # no record dimension
            return y

    model = tiny_model()
    model.model.embed_tokens = Positions(model.model.embed_tokens).requires_grad_(False)
    model.get_input_embeddings = lambda: model.model.embed_tokens.inner
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    batch = batch_of(1, 12)  # divides by two, so a cut would go unnoticed
    expected = [alone(tuned, batch, 9, scale) for scale in (1e-4, -1e-4)]
    assert tuned.losses(response_loss, batch, 9, (1e-4, -1e-4)) == expected
    assert tuned._stacks is False


def test_a_module_that_reads_anothers_weight_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=100, hidden_size=32, state_size=4, num_hidden_layers=1)
        model = MambaForCausalLM(config).eval().requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    with pytest.raises(ModelError, match="reads parameters of another") as caught:
        tuned.losses(response_loss, batch_of(1, 16), 9, (0.02, -0.02))
    assert "dt_proj.weight" in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_neither_loses_a_step_nor_takes_it_twice(
    moment: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, batch = BoundSpace(Rademacher(), KEY), batch_of(1, 16)
    tuned, undisturbed = (ProjectedTuned(tiny_model(), space) for _ in range(2))
    for one in (tuned, undisturbed):
        one.losses(response_loss, batch, 1, (0.02, -0.02))
        one.apply(Projected.of(4, 0.25))
    multiply = BoundSpace.multiply

    def interrupted(*arguments: Any) -> torch.Tensor:
        if moment == "after":
            multiply(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(BoundSpace, "multiply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned.losses(response_loss, batch, 1, (0.02, -0.02))
    monkeypatch.undo()
    assert tuned.state().coefficients.tolist() == [0.25]
    expected = dict(undisturbed.named_weights())
    for name, weight in tuned.named_weights():
        assert torch.equal(weight, expected[name])


def test_odd_parameters(tiny_model: Any) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.empty = torch.nn.Parameter(torch.ones(())), torch.nn.Linear(1, 3)
            self.empty.weight = torch.nn.Parameter(torch.zeros(3, 0))
            self.wide = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.scale * self.wide(x) + self.empty(x[:, :0])
            return y

    module, x = Odd().requires_grad_(False), torch.ones(2, 4)
    space = BoundSpace(Rademacher(), KEY)
    tuned = ProjectedTuned(module, space)
    biases = {name: one for name, one in module.named_parameters() if name.endswith("bias")}
    with torch.no_grad(), tuned.perturbed(1, 0.5):
        both = module(x)
    tuned.close()
    with torch.no_grad(), ProjectedTuned(module, space, weights=biases).perturbed(1, 0.5):
        some = module(x)
    assert not torch.equal(both, some)
    assert not torch.equal(some, Odd.forward(module, x))
    base = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    streamed = StreamedTuned(module, space, base)
    with torch.no_grad(), streamed.perturbed(1, 0.5):
        assert torch.equal(module(x), both)
