"""Tensors of waiting passes lie in a file meanwhile, and come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from greenlet import getcurrent, greenlet
from torch import nn

import edgetune.compress.parking as parking
from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.capture import capture
from edgetune.compress.parking import Parking
from edgetune.compress.sequential import compress_model
from edgetune.compress.walk import Then, Walk
from edgetune.methods.compression import gptaq

from .problems import FAMILIES, tiny


@pytest.fixture
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "HELD", 0)
    monkeypatch.setattr(parking, "SMALL", 1)


def waiting(shared: torch.Tensor, kept: list[torch.Tensor]) -> greenlet:
    def forward() -> float:
        own, nested = torch.arange(1000.0), (torch.ones(300), {"a": torch.full((7,), 2.0)})
        view = own.view(10, 100)[3:]
        kept.extend([own, nested[0], nested[1]["a"]])  # type: ignore[index]
        getcurrent().parent.switch()
        return float(own.sum() + view.sum() + nested[0].sum() + nested[1]["a"].sum() + shared.sum())  # type: ignore[index]

    walker = greenlet(forward)
    walker.switch()
    return walker


@pytest.mark.usefixtures("nothing_stays")
def test_a_pass_that_waits_keeps_nothing_and_goes_on_with_everything(tmp_path: Path) -> None:
    shared, kept = torch.ones(50), list[torch.Tensor]()
    walker = waiting(shared, kept)
    lot = Parking(tmp_path, [shared])
    lot.take(0, walker)
    assert [one.untyped_storage().nbytes() for one in (*kept, shared)] == [0, 0, 0, 200]
    assert not list(tmp_path.iterdir())  # a file without a name cannot be left behind
    lot.give_back(0)
    assert torch.equal(kept[0], torch.arange(1000.0))
    assert walker.switch() == 499500 + sum(range(300, 1000)) + 300 + 14 + 50
    lot.close()


def test_few_bytes_stay_in_memory(tmp_path: Path) -> None:
    kept: list[torch.Tensor] = []
    walker = waiting(torch.ones(1), kept)
    lot = Parking(tmp_path, [])
    lot.take(0, walker)
    assert kept[0].untyped_storage().nbytes() == 4000
    lot.give_back(0)
    lot.close()
    walker.switch()


@pytest.mark.usefixtures("nothing_stays")
def test_what_cannot_be_written_stays_in_memory(tmp_path: Path) -> None:
    kept: list[torch.Tensor] = []
    walker = waiting(torch.ones(1), kept)
    lot = Parking(tmp_path / "nowhere", [])
    lot.take(0, walker)
    assert torch.equal(kept[0], torch.arange(1000.0))
    lot.give_back(0)
    walker.switch()


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_to_the_same_codes(
    family: str, calibration: list[torch.Tensor], tmp_path: Path
) -> None:
    here = compress_model(tiny(family), calibration, gptaq.METHOD)
    away = compress_model(tiny(family), calibration, gptaq.METHOD, scratch=tmp_path)
    assert here.keys() == away.keys()
    assert all(torch.equal(here[name].codes, away[name].codes) for name in here)


def test_batches_that_stop_go_no_further(calibration: list[torch.Tensor]) -> None:
    model = tiny("llama")
    blocks = decoder_blocks(model)
    last = blocks[0].get_submodule("mlp.down_proj")
    reached: list[nn.Module] = []
    with torch.no_grad():
        streams = capture(model, blocks, calibration)
        handle = last.register_forward_hook(lambda layer, *_: reached.append(layer))
        with Walk(blocks[0], 0, streams, {last: 0}) as walk:
            assert all(one is not None for one in walk.inputs(0, then=Then.STOP))
        handle.remove()
    assert not reached
