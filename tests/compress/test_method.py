from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgetune.compress.method import CompressionMethod
from edgetune.core.errors import ConfigError
from edgetune.core.quantised import Q8_0, BlockGrid
from edgetune.methods.compression import optq, rtn


@pytest.mark.parametrize("module", [optq, rtn])
def test_a_file_name_is_the_public_name(module: object) -> None:
    method = module.METHOD  # type: ignore[attr-defined]
    assert isinstance(method, CompressionMethod)
    assert method.name == Path(str(module.__file__)).stem  # type: ignore[attr-defined]
    assert method.summary.endswith(".")
    method.check()


def test_a_variant_is_a_replacement() -> None:
    variant = dataclasses.replace(optq.METHOD, grid=Q8_0, embeddings=None)
    assert (variant.grid, variant.embeddings, optq.METHOD.embeddings) == (Q8_0, None, Q8_0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damping": 0.0}, "optq: damping must be above 0 and at most 1, not 0.0"),
        ({"damping": 2.0}, "optq: damping must be"),
        ({"damping": float("nan")}, "optq: damping must be"),
        ({"block": 0}, "optq: block must be"),
        ({"block": -32}, "optq: block must be"),
        ({"grid": BlockGrid("Q5_9", -16, 15, 22)}, "optq: no file format stores the grid 'Q5_9'"),
        ({"embeddings": BlockGrid("Q8_0", -128, 127, 34)}, "optq: no file format stores the grid 'Q8_0'"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(optq.METHOD, **change)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
