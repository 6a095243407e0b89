"""Rows folded onto a tile and tiles spread over rows: the formulas, in C on every instruction set and in torch."""

from __future__ import annotations

import pytest
import torch

from edgetune.directions import native
from edgetune.directions.kernel import VARIABLE
from edgetune.directions.native.tiles import add_apart, fold, unfold

LEVELS = range(native.best_level() + 1)
needs_kernel = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernel: no C compiler at install"
)
WIDTHS, COLUMNS = (1, 2, 16, 64, 128, 512), (0, 1, 63, 64, 65, 130, 700, 768)


def operands(rows: int, columns: int, wide: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns * 1000 + wide)
    signs = 1 - 2 * torch.randint(2, (columns,), generator=generator).float()
    return (
        torch.randn(rows, columns, generator=generator),
        signs,
        torch.randn(rows, wide, generator=generator),
    )


def folded(x: torch.Tensor, e: torch.Tensor, wide: int) -> torch.Tensor:
    """The defining sum in float64, a column at a time."""
    f = torch.zeros(*x.shape[:-1], wide, dtype=torch.float64)
    for j in range(x.shape[-1]):
        f[..., j % wide] += x[..., j].double() * e[j].double()
    return f


def spread(y: torch.Tensor, g: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The defining sum, one rounding an element."""
    repeated = g[..., torch.arange(y.shape[-1]) % g.shape[-1]]
    return y + d * repeated


@needs_kernel
@pytest.mark.parametrize("wide", WIDTHS)
def test_the_kernel_gives_the_formulas_on_every_set_and_the_same_bits(wide: int) -> None:
    for columns in COLUMNS:
        x, e, g = operands(5, columns, wide)
        first = None
        for level in LEVELS:
            for threads in (1, 3):
                f = fold(x, e, wide, level=level, threads=threads)
                torch.testing.assert_close(f.double(), folded(x, e, wide), rtol=1e-5, atol=1e-4)
                first = f if first is None else first
                assert torch.equal(f, first), (columns, level, threads)
                y = x.clone()
                unfold(y, g, e, level=level, threads=threads)
                assert torch.equal(y, spread(x, g, e)), (columns, level, threads)


@pytest.mark.parametrize("wide", [*WIDTHS, 3])
def test_torch_gives_the_formulas(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    for columns in COLUMNS:
        x, e, g = operands(5, columns, wide)
        torch.testing.assert_close(fold(x, e, wide).double(), folded(x, e, wide), rtol=1e-5, atol=1e-4)
        y = x.clone()
        unfold(y, g, e)
        assert torch.equal(y, spread(x, g, e))


def test_other_types_layouts_and_gradients_go_to_torch() -> None:
    x, e, g = operands(6, 100, 16)
    expected = folded(x, e, 16)
    for other, bound in ((x.double(), 1e-9), (x.bfloat16(), 0.2), (x.T.contiguous().T, 1e-4)):
        assert float((fold(other, e, 16).double() - expected).abs().max()) < bound
        y = other.clone(memory_format=torch.preserve_format)
        unfold(y, g, e)
        assert y.dtype == other.dtype
        assert float((y.double() - spread(x, g, e).double()).abs().max()) < 0.05
    leaf = x.clone().requires_grad_()
    fold(leaf, e, 16).sum().backward()
    assert torch.equal(leaf.grad, e.expand(6, 100))


def test_leading_dimensions_are_kept() -> None:
    x, e, g = operands(6, 40, 8)
    assert torch.equal(fold(x.view(2, 3, 40), e, 8), fold(x, e, 8).view(2, 3, 8))
    y, flat = x.clone().view(2, 3, 40), x.clone()
    unfold(y, g.view(2, 3, 8), e)
    unfold(flat, g, e)
    assert torch.equal(y.view(6, 40), flat)
    assert fold(x[:0], e, 8).shape == (0, 8)


@needs_kernel
def test_operands_that_do_not_fit_are_refused() -> None:
    x, e, g = operands(6, 40, 8)
    with pytest.raises(ValueError, match="do not fit"):
        fold(x, e[1:], 8, level=0)
    with pytest.raises(ValueError, match="do not fit"):
        unfold(x, g[1:], e, level=0)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 70, 130), (2, 5, 768, 64), (2, 0, 4, 4)], ids=str)
def test_a_direction_a_record_is_its_formula(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    records, tokens, depth, outs = shape
    generator = torch.Generator().manual_seed(depth)
    x, y = (torch.randn(records, tokens, n, generator=generator) for n in (depth, outs))
    v, u = (1 - 2 * torch.randint(2, (records, n), generator=generator).float() for n in (depth, outs))
    s = torch.randn(records, tokens, generator=generator) * 0.1
    expected = y.double()
    for r in range(records):
        for t in range(tokens):
            expected[r, t] += s[r, t] * (x[r, t].double() @ v[r].double()) * u[r]
    first = None
    for level in LEVELS if native.library() is not None else ():
        for threads in (1, 3):
            got = y.clone()
            add_apart(got, x, v, u, s, level=level, threads=threads)
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
            first = got if first is None else first
            assert torch.equal(got, first)
    monkeypatch.setenv(VARIABLE, "torch")
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        plain = y.to(dtype, copy=True)
        add_apart(plain, x.to(dtype), v, u, s)
        torch.testing.assert_close(plain.double(), expected, rtol=bound, atol=bound)


@needs_kernel
def test_a_scale_a_record_is_spread_and_misfits_are_refused() -> None:
    x, y, v = torch.ones(2, 3, 4), torch.zeros(2, 3, 5), torch.ones(2, 4)
    add_apart(y, x, v, torch.ones(2, 5), torch.tensor([[1.0], [2.0]]), level=0)
    assert y[0].eq(4).all()
    assert y[1].eq(8).all()
    with pytest.raises(ValueError, match="do not fit"):
        add_apart(y, x, v, torch.ones(2, 4), torch.ones(2, 1), level=0)
