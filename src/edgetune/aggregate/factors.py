"""Low-rank factors of several devices: what each arrived at, and how far a rule's result is from their exact mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.residual import Factors, pairs, residuals
from edgetune.core.update import Contribution, Dense, Update


def factors(update: Update, state: Dense) -> dict[str, Factors]:
    """Return the factors B and A by adapted layer after a change.

        B = B_r + dB,   A = A_r + dA

    Args:
        update: the change, a device's or the server's.
        state: what the round started from.

    Raises:
        ConfigError: if the change is projected.
    """
    tensors, before = dense(update).tensors, state.tensors
    moved = {name: before[name] + tensors[name] for name in tensors if name in before}
    return {stem: (moved[left], moved[right]) for stem, (left, right) in pairs(moved).items()}


def dense(update: Update) -> Dense:
    """Return an update that is dense.

    Raises:
        ConfigError: if it is not.
    """
    if not isinstance(update, Dense):
        raise ConfigError("low-rank factors are dense tensors")
    return update


def stacked(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Return two factors whose product is a weighted sum of products.

        [w_1 B_1 ... w_n B_n] [A_1; ...; A_n] = sum_i w_i B_i A_i

    Cost: a copy; the rank is the sum of the ranks.
    """
    return torch.cat([w * left for w, (left, _) in parts], 1), torch.cat(
        [right for _, (_, right) in parts], 0
    )


def gap(
    told: Sequence[Contribution], weights: Sequence[float], state: Update, change: Update, scale: float
) -> float | None:
    """Return how far a round's change of the weights is from the weighted mean of the devices' changes.

        || s (sum_c p_c B_c A_c - B A - dR) ||_F,   B, A: after the round;  dR: what it added to the base

    Zero to rounding for exact rules; for the mean of factors it is the norm of s sum_c p_c (B_c - B)(A_c - A).

    Args:
        told: what the devices sent.
        weights: p_c.
        state: what the round started from.
        change: what the rule made of it.
        scale: s, the adapter's alpha over its rank.

    Returns:
        The norm over all adapted layers; None where there are no pairs of factors. With a fixed A it is 0, as the mean
        is exact.
    Cost: two QR decompositions a layer of as many columns as the ranks add up to.
    """
    if not isinstance(state, Dense) or not isinstance(change, Dense):
        return None
    if not pairs(state.tensors):
        return 0.0 if scale else None
    each, after = [factors(one.update, state) for one in told], factors(change, state)
    added = {name.partition(".residual")[0] for name in residuals(change)}
    squares = 0.0
    for stem, result in after.items():
        parts = [(p, one[stem]) for p, one in zip(weights, each, strict=True)] + [(-1.0, result)]
        own = {name: one for name, one in change.tensors.items() if name.startswith(f"{stem}.residual")}
        parts += [(-1.0, _factors_of(own))] if stem in added else []
        left, right = stacked([(w, (b.double(), a.double())) for w, (b, a) in parts])
        upper, lower = torch.linalg.qr(left, mode="r").R, torch.linalg.qr(right.T, mode="r").R
        squares += float((upper @ lower.T).square().sum())
    return float(abs(scale) * squares**0.5)


def _factors_of(added: dict[str, torch.Tensor]) -> Factors:
    (left,) = (one for name, one in added.items() if ".residual_B." in name)
    (right,) = (one for name, one in added.items() if ".residual_A." in name)
    return left, right
