"""Rows folded onto a tile and tiles spread over rows: the formulas, in C on every instruction set and in torch."""

from __future__ import annotations

import pytest
import torch

from edgetune.directions import native
from edgetune.directions.kernel import VARIABLE
from edgetune.directions.native.tiles import fold, unfold

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
