"""Systems that must be each other where their settings say so, and runs that must not depend on where they run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from federations import METHODS, SEED, STEPS, MakeToy, Toy, examples

from edgetune.core.keys import pool_key
from edgetune.data.encode import batches
from edgetune.directions.space import BoundSpace
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.tune import ProjectedTuned

SAME = {"learning_rate": 1e-3, "eps": 1e-3, "directions": "gaussian", **STEPS}


def run_of(toy: MakeToy, method: Any, monkeypatch: pytest.MonkeyPatch, run: str) -> Toy:
    monkeypatch.setitem(METHODS, run, method)
    return toy(run, run=run)


def test_fedkseed_whose_directions_never_return_is_mezo_over_a_federation(
    toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = with_options(tuning_method("fedkseed"), {"draw": "fresh", "up_values": "float32", **SAME})
    one = run_of(toy, fresh, monkeypatch, "fresh").federate(3)
    other = run_of(toy, with_options(tuning_method("mezo"), SAME), monkeypatch, "plain").federate(3)
    assert len(one.update.keys) > 0
    assert np.array_equal(one.update.keys, other.update.keys)
    assert np.array_equal(one.update.coefficients, other.update.coefficients)
    assert one.weights_digest == other.weights_digest != ""


def test_a_pool_that_no_direction_of_is_drawn_twice_moves_like_fresh_directions(
    toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With K far above the steps, the loss falls as far: the finite pool costs nothing on average."""
    falls = []
    for run, draw in (("pool", {"pool": 1 << 16}), ("fresh", {"draw": "fresh"})):
        method = with_options(tuning_method("fedkseed"), {**SAME, "local_steps": 40, **draw})
        made = run_of(toy, method, monkeypatch, run)
        made.federate(2, 1.0)
        losses = [event.loss for event in made.events if getattr(event, "loss", None) is not None]
        falls.append(losses[-1])
    assert falls[0] == pytest.approx(falls[1], rel=0.05)


@pytest.mark.parametrize("name", ["fedkseed", "mezo", "one_byte", "fwdllm", "lora", "fedselft"])
def test_threads_change_no_more_than_rounding(name: str, toy: MakeToy) -> None:
    """Products that a library splits over threads round differently; nothing else may."""
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            run = toy(name, run=f"{threads}")
            run.worker.tuned.reset(run.federate(2).update)
            found.append({key: one.detach().clone() for key, one in run.worker.tuned.named_weights()})
    finally:
        torch.set_num_threads(before)
    moved = {key: one.detach() for key, one in toy(name, run="base").worker.tuned.named_weights()}
    for key, one in found[0].items():
        apart = float((one - found[1][key]).abs().max())
        assert apart <= 1e-2 * float((one - moved[key]).abs().max()) + 1e-7


def test_the_order_in_which_parameters_are_registered_changes_no_scalar(save_tiny: Any) -> None:
    """A direction follows from the name of a tensor, so that its place among the others plays no part."""
    method, batch, found = METHODS["mezo"], next(iter(batches(examples(1), 4, 0))), []
    for turned in (False, True):
        model = load_backbone(save_tiny()).model
        if turned:
            for module in model.modules():
                for kept in (module._parameters, module._modules):
                    items = list(kept.items())[::-1]
                    if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
                        kept.clear()
                        kept.update(items)
        names = [name for name, _ in model.named_parameters()]
        assert method.directions is not None
        tuned = ProjectedTuned(model, BoundSpace(method.directions.kind, pool_key(SEED), pooled=False))
        estimate = method.estimate(tuned, lambda model, batch: model(batch.input_ids).logits.mean(), batch, 3)
        tuned.apply(estimate.update)
        weights = dict(tuned.named_weights())
        found.append(
            (names, estimate.update.coefficients.tolist(), {name: weights[name] for name in sorted(weights)})
        )
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]
    assert all(torch.equal(one, found[1][2][name]) for name, one in found[0][2].items())
