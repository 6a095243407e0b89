"""FedProx: a device is held near the model that its round began with."""

from __future__ import annotations

from edgetune.core.errors import ConfigError
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense, Projected, Update


def pulled(tuned: Tuned, estimate: Update, mu: float) -> Update:
    """Return the gradient of the loss and a proximal term; the estimate itself if mu is 0.

        g + mu (w - w_round),   the gradient of L(w) + mu/2 |w - w_round|^2

    On directions `w - w_round = sum_k d_k z_k`, so that d_k is added to the slope along z_k: the same step of the
    weights.

    Args:
        tuned: the handle, which knows what was applied since the round began.
        estimate: g.
        mu: at least 0.

    Raises:
        ConfigError: if estimate and handle are of different kinds.
    Cost: a pass over the tuned tensors, or as many numbers as directions moved.
    Source: Li et al. 2020, arXiv:1812.06127.
    """
    if not mu:
        return estimate
    since = tuned.delta()
    if isinstance(estimate, Dense) and isinstance(since, Dense):
        return Dense({name: one + mu * since.tensors[name] for name, one in estimate.tensors.items()})
    if isinstance(estimate, Projected) and isinstance(since, Projected):
        return (estimate + since.scaled(mu)).merged()
    raise ConfigError("a dense and a projected update cannot be added")


def check_mu(mu: float) -> None:
    """Refuse a proximal term that would push.

    Raises:
        ConfigError: if mu is negative or not finite.
    """
    if not 0 <= mu < float("inf"):
        raise ConfigError(f"proximal must be a number of at least 0, not {mu}")
