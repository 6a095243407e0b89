"""The first sequence of a batch alone, where that is certain."""

from __future__ import annotations

import pytest
import torch

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.capture import capture
from edgetune.compress.streams import Stream

from .problems import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_one_sequence_shows_the_same_stages_as_all(family: str, calibration: list[torch.Tensor]) -> None:
    model = tiny(family)
    blocks = decoder_blocks(model)
    stream = capture(model, blocks, calibration[:1])[0]
    one = stream.first(0)
    assert one.hidden.shape == (1, *stream.hidden.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(one.run(blocks[0], 0), stream.run(blocks[0], 0)[:1])


def test_arguments_of_unknown_layout_are_left_whole() -> None:
    hidden, real = torch.ones(2, 5, 4), torch.ones(10, dtype=torch.bool)
    heads = Stream(hidden, [((), {"alibi": torch.ones(6, 1, 5)})], real)
    assert heads.first(0) is heads
    square = Stream(torch.ones(5, 5, 4), [((), {})], torch.ones(25, dtype=torch.bool))
    assert square.first(0) is square
