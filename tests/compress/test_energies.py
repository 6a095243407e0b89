from __future__ import annotations

import pytest
import torch

from edgetune.compress.blocks import decoder_blocks, matrices_in
from edgetune.compress.energies import input_energies
from edgetune.core.batch import Batch

from .problems import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_sums_of_squares_of_what_each_layer_reads(
    family: str, calibration: list[torch.Tensor]
) -> None:
    model = tiny(family)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    linears = {
        name: one for block in decoder_blocks(model) for name, one in matrices_in(block, names)[0].items()
    }
    found = input_energies(model, linears, calibration)
    assert found.keys() == linears.keys()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen[name].append(given[0].flatten(0, -2))
        )
        for name, layer in linears.items()
    ]
    with torch.no_grad():
        for ids in calibration:
            model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    for name, inputs in seen.items():
        every = torch.cat(inputs).double()
        assert found[name].tokens == len(every) == 8 * 24
        torch.testing.assert_close(found[name].mean.double(), (every**2).mean(0), rtol=1e-4, atol=1e-7)


def test_padding_counts_nothing(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    linears = {name: model.get_submodule(name.removesuffix(".weight"))}
    ids = calibration[0]
    longer = torch.cat([ids, torch.full_like(ids, 7)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], dim=1)
    (alone,) = input_energies(model, linears, [ids]).values()  # type: ignore[arg-type]
    (padded,) = input_energies(model, linears, [Batch(longer, mask, longer)]).values()  # type: ignore[arg-type]
    assert padded.tokens == alone.tokens == ids.numel()
    torch.testing.assert_close(padded.sums, alone.sums, rtol=1e-4, atol=1e-6)
