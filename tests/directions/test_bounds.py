"""No argument makes the compiled kernel read or write out of bounds: Python refuses it, and the kernel once more."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.errors import ModelError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Hadamard, Kind, Rademacher, native
from edgetune.directions.kept import KeptSpace
from edgetune.directions.native.library import installed
from edgetune.directions.native.product import Matrix
from edgetune.directions.native.structs import Job, Reading
from edgetune.directions.space import BoundSpace

KEY = pool_key(5)
LEVELS = range(native.best_level() + 1)
needs_kernel = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)
OUTSIDE = [-(2**63), -1, 20, 31, 32, 2**40, 2**63 - 1]
"""Seeds that a pool of 20 has not; its blocks are padded to 32."""


def uses(space: BoundSpace) -> dict[str, Callable[[int], object]]:
    """Every way in which a seed reaches the kernel."""
    w, x, rows = torch.ones(6, 8), torch.ones(2, 8), torch.tensor([1])
    return {
        "axpy": lambda seed: space.axpy(w, w, 0.5, "w", seed),
        "replay": lambda seed: space.replay(w, w, Projected.of(3, 0.1) + Projected.of(seed, 0.5), "w"),
        "read": lambda seed: space.read(w, w, Projected.of(seed, 0.5), "w", (3, 0.5), 0),
        "read at": lambda seed: space.read(w, w, Projected.of(3, 0.5), "w", (seed, 0.5), 0),
        "points": lambda seed: space.points(w[0], "w", seed, (0.5,)),
    } | (
        {
            "multiply": lambda seed: space.multiply(x, w, "w", seed, (0.5, -0.5), None),
            "multiply pending": lambda seed: space.multiply(x, w, "w", 3, (0.5, -0.5), (seed, 0.5)),
            "multiply formed": lambda seed: space.multiply(
                x, w, "w", 3, (0.5, -0.5), None, Projected.of(seed, 0.5)
            ),
            "gather": lambda seed: space.gather(rows, w, "w", seed, (0.5,), None),
            "gather pending": lambda seed: space.gather(rows, w, "w", 3, (0.5,), (seed, 0.5)),
        }
        if space.multiplies(w, w)
        else {}
    )


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_a_direction_that_a_pool_has_not_is_refused_everywhere(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_KERNEL", kernel)
    for use in uses(BoundSpace(Hadamard(20), KEY)).values():
        use(19)
        for seed in OUTSIDE:
            with pytest.raises(ModelError, match=f"no direction {seed}: .* from 0 to 19"):
                use(seed)


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian()], ids=str)
def test_a_negative_seed_is_refused(kind: Kind) -> None:
    for use in uses(BoundSpace(kind, KEY)).values():
        use(2**63 - 1)
        with pytest.raises(ModelError, match="no direction -1"):
            use(-1)
    with pytest.raises(ModelError, match="no direction -1"):
        KeptSpace(kind, KEY).axpy(torch.ones(3), torch.ones(3), 0.5, "w", -1)


@needs_kernel
def test_tensors_that_do_not_fit_are_refused() -> None:
    matrix, terms = (
        Matrix(Rademacher(), KEY, "layer.weight"),
        native.Terms(Rademacher(), Projected.of(3, 0.5)),
    )
    w, x = torch.ones(6, 8), torch.ones(4, 8)
    wrong: list[Callable[[], object]] = [
        lambda: matrix.axpy(torch.ones(5), torch.ones(6), 0.5, 1),
        lambda: matrix.axpy(w.T, w.T, 0.5, 1),
        lambda: matrix.axpy(w.double(), w, 0.5, 1),
        lambda: matrix.axpy(w, w.int(), 0.5, 1),
        lambda: matrix.axpy(w, w, 0.5, 1, start=-8192),
        lambda: matrix.axpy(w, w, 0.5, 1, start=100),
        lambda: matrix.replay(torch.ones(5), torch.ones(6), terms),
        lambda: matrix.multiply(torch.ones(4, 7), w, 1, (0.5, -0.5)),
        lambda: matrix.multiply(torch.ones(3, 8), w, 1, (0.5, -0.5)),
        lambda: matrix.multiply(torch.ones(0, 8), w, 1, (0.5, -0.5)),
        lambda: matrix.multiply(x.double(), w, 1, (0.5, -0.5)),
        lambda: matrix.multiply(torch.ones(8, 4).T, w, 1, (0.5, -0.5)),
        lambda: matrix.multiply(x, w, 1, ()),
        lambda: matrix.multiply(x, w, 1, (0.5, 0.5, 0.5)),
        lambda: matrix.multiply(x, w.half(), 1, (0.5, -0.5)),
        lambda: matrix.multiply(x, w.half(), 1, (0.5, -0.5), state=terms, pending=(1, 0.5)),
        lambda: matrix.points(w.half(), 1, (0.5,)),
        lambda: matrix.gather(torch.tensor([0, 6]), w, 1, (0.5,)),
        lambda: matrix.gather(torch.tensor([-1, 0]), w, 1, (0.5,)),
        lambda: matrix.gather(torch.tensor([0.0]), w, 1, (0.5,)),
    ]
    for use in wrong:
        with pytest.raises(ModelError, match=r"layer\.weight"):
            use()
    with pytest.raises(ModelError, match="32 bytes, not 31"):
        Matrix(Rademacher(), KEY[:31], "w")
    padded = native.Terms(Hadamard(16_384), Projected.of(3, 0.5))
    with pytest.raises(ModelError):
        Matrix(Hadamard(16_384), KEY, "w").replay(w, w, padded, start=8192)


class Arguments:
    """A job on 100 weights and a reading of 10 x 10, all arrays kept alive; each is right until a field is changed."""

    def __init__(self, kind: int) -> None:
        self.out, self.base = torch.full((200,), 7.0), torch.zeros(100)
        self.x, self.ids, self.order = torch.ones(60), torch.tensor([3, 9]), torch.tensor([0, 1])
        self.seeds = np.array([3, 19], np.uint64)
        self.coefficients, self.table = np.ones(32, np.float32), torch.zeros(65536)
        self.job = Job(
            out=self.out.data_ptr(), base=self.base.data_ptr(), count=100, kind=kind, terms=2, padded=32,
            seeds=self.seeds.ctypes.data, coefficients=self.coefficients.ctypes.data, table=self.table.data_ptr(),
        )  # fmt: skip
        self.reading = Reading(
            direction=self.job, state=self.job, x=self.x.data_ptr(), y=self.out.data_ptr(),
            rows=3, outs=10, depth=10, seed=3, step_seed=4, scale=0.5, other_scale=-0.5, points=2,
        )  # fmt: skip

    def untouched(self) -> bool:
        return bool((self.out == 7).all()) and not self.base.any()


RADEMACHER, GAUSSIAN, HADAMARD = range(3)
BAD_JOBS: list[tuple[int, dict[str, Any]]] = [
    *[(kind, {"count": -1}) for kind in range(3)],
    *[(kind, {"count": 1 << 60}) for kind in range(3)],
    *[(RADEMACHER, {"start": start}) for start in (-8192, 1, 8191, (1 << 63) - 8192, 1 << 50)],
    *[(RADEMACHER, {"kind": kind}) for kind in (-1, 3, 1 << 30)],
    *[(RADEMACHER, {"out_dtype": dtype}) for dtype in (-1, 3, 4)],
    *[(RADEMACHER, {"base_dtype": dtype}) for dtype in (-1, 6, 1 << 30)],
    *[(RADEMACHER, {"terms": terms}) for terms in (-1, -(1 << 31))],
    *[(HADAMARD, {"padded": padded}) for padded in (0, 3, 33, (1 << 20) + 1, 1 << 21, 1 << 31)],
    *[(HADAMARD, {"padded": padded}) for padded in (16, 1)],  # seed 19 lies beyond
    *[(kind, {field: None}) for kind in range(3) for field in ("out", "base", "seeds", "coefficients")],
    (GAUSSIAN, {"table": None}),
]


@needs_kernel
@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
def test_the_kernel_refuses_a_job_that_makes_no_sense(level: int) -> None:
    run = installed().edgetune_run
    for kind in range(3):
        assert run(ctypes.byref(Arguments(kind).job), 0, level, 1, None) == 0
    assert run(ctypes.byref(Arguments(HADAMARD).job), 1, level, 1, None) == 0
    for kind, fields in BAD_JOBS:
        wrong = Arguments(kind)
        for field, value in fields.items():
            setattr(wrong.job, field, value)
        assert run(ctypes.byref(wrong.job), 0, level, 3, None) == 1, (kind, fields)
        assert wrong.untouched()
    for outside in (-1, native.best_level() + 1):
        assert run(ctypes.byref(Arguments(0).job), 0, outside, 1, None) == 1
    assert run(None, 0, level, 1, None) == 1
    for field, value in {"coefficients": None, "start": 8192 + 512, "padded": 0}.items():
        wrong = Arguments(HADAMARD)
        setattr(wrong.job, field, value)
        assert run(ctypes.byref(wrong.job), 1, level, 1, None) == 1, field
        assert wrong.untouched()


BAD_READINGS: list[dict[str, Any]] = [
    *[{"outs": value} for value in (0, -1, 9, 11, 1 << 62)],
    *[{"depth": value} for value in (0, -1, 9, 11, 1 << 62)],
    *[{"points": value} for value in (0, 3, -1)],
    *[{"seed": value} for value in (32, (1 << 64) - 1)],
    {"step_seed": 32, "folds": 1},
    {"y": None},
    {"formed": 1, "folds": 1},
]
BAD_PRODUCTS: list[dict[str, Any]] = [
    *BAD_READINGS,
    *[{"rows": value} for value in (0, -1, 1 << 62)],
    {"x": None},
    {"formed": 1, "replay": 1, "state": Job()},
]
BAD_DIRECTIONS: dict[str, list[Any]] = {
    "base": [None],
    "base_dtype": [1, 2, 3, -1, 5],
    "kind": [GAUSSIAN, 3, -1],
    "count": [99, 101, -1],
    "start": [8192, -1],
    "padded": [0, 3, 1 << 21],
}


@needs_kernel
@pytest.mark.parametrize("level", LEVELS, ids=native.LEVELS.__getitem__)
def test_the_kernel_refuses_a_reading_that_makes_no_sense(level: int) -> None:
    kernel = installed()

    def product(all: Arguments) -> int:
        return int(kernel.edgetune_product(ctypes.byref(all.reading), level, 2, None))

    def points(all: Arguments) -> int:
        return int(kernel.edgetune_points(ctypes.byref(all.reading), level))

    def gather(all: Arguments) -> int:
        ids, order = (ctypes.c_void_p(one.data_ptr()) for one in (all.ids, all.order))
        count = ctypes.c_int64(len(all.ids))
        return int(kernel.edgetune_gather(ctypes.byref(all.reading), ids, order, count, level))

    for use, bad in ((product, BAD_PRODUCTS), (points, BAD_READINGS), (gather, BAD_READINGS)):
        assert use(Arguments(HADAMARD)) == 0
        for fields in bad:
            wrong = Arguments(HADAMARD)
            for field, value in fields.items():
                setattr(wrong.reading, field, value)
            assert use(wrong) == 1, (use.__name__, fields)
            assert wrong.untouched()
        for field, values in BAD_DIRECTIONS.items():
            for value in values:
                wrong = Arguments(HADAMARD)
                setattr(wrong.reading.direction, field, value)
                assert use(wrong) == 1, (use.__name__, field, value)
                assert wrong.untouched()
    for ids in ([-1, 3], [3, 10], [1 << 62, 0]):
        wrong = Arguments(HADAMARD)
        wrong.ids = torch.tensor(ids)
        assert gather(wrong) == 1
    for order in ([0, 2], [-1, 0]):
        wrong = Arguments(HADAMARD)
        wrong.order = torch.tensor(order)
        assert gather(wrong) == 1
    reading, nothing = ctypes.byref(Arguments(HADAMARD).reading), ctypes.c_void_p(None)
    assert kernel.edgetune_gather(reading, nothing, nothing, ctypes.c_int64(1), level) == 1
    assert kernel.edgetune_gather(reading, nothing, nothing, ctypes.c_int64(-1), level) == 1
    assert kernel.edgetune_gather(reading, nothing, nothing, ctypes.c_int64(0), level) == 0
    assert kernel.edgetune_product(None, level, 1, None) == 1
    assert kernel.edgetune_product(reading, len(native.LEVELS), 1, None) == 1
