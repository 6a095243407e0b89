"""How long a message of tensors would be, without encoding one."""

from __future__ import annotations

import pytest
import torch

from edgetune.core.update import Dense
from edgetune.wire.tensors import Tensors, half_length

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "none": {},
    "one number": {"w": ()},
    "of many sizes": {f"layer.{index}.weight": (index, 3 * index) for index in range(12)},
    "names that are escaped": {'a "quoted" \\ name': (3,), "über/öl": (2, 2), "tab\t": (1,), "日本": (4,)},
    "in another order": {"b": (5,), "a": (7, 2), "B": (1, 1, 1)},
}


@pytest.mark.parametrize("case", SHAPES)
def test_the_length_is_that_of_the_encoded_message(case: str) -> None:
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in SHAPES[case].items()}
    assert half_length(SHAPES[case]) == len(Tensors().encode(Dense(tensors)))
