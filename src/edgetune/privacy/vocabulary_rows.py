"""Which tokens a batch has, read from the change of a table with a row a token."""

from __future__ import annotations

import torch
from torch.nn import functional


def moved_rows(table: torch.Tensor) -> torch.Tensor:
    """Return which tokens' rows moved at all: of an embedding that is no head, those of the batch and no others.

    Args:
        table: float [tokens, width], the change of an embedding or its gradient.

    Returns:
        Bool [tokens].
    """
    return table.ne(0).any(dim=1)


def rows_apart(table: torch.Tensor) -> torch.Tensor:
    """Return how unlike each row of a table is to the mean row, first of all those that moved.

        s_v = 1 - cos(d_v, m),   m = mean_v d_v / |d_v|,   -1 where d_v = 0

    A head's row of a token that was not said gets `sum_t p_tv h_t`: the same direction for all of them, and of an
    adaptive optimiser's step the same size too. The row of a token that was said gets `-h_t` besides, that of one that
    was read the error of its place.

    Args:
        table: float [tokens, width], the change of a head, an embedding, or one that is both.

    Returns:
        Float32 [tokens], the greatest for the likeliest.
    """
    rows = functional.normalize(table.float(), dim=1)
    apart = 1 - rows @ functional.normalize(rows.mean(0), dim=0)
    return torch.where(moved_rows(table), apart, -torch.ones_like(apart))
