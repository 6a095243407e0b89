"""What both ends of a message know without being told; a codec sends the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgetune.core.pieces import Layers
from edgetune.core.update import Update


def nobody(round: int) -> Sequence[int]:
    """Return the devices of a round of which nothing is known."""
    return ()


def nothing(round: int, device: int) -> Sequence[int]:
    """Return the directions of a device of which nothing is known."""
    return ()


def one(count: int) -> float:
    """Return the factor of steps that are said as they are."""
    return 1.0


@dataclass(frozen=True, slots=True)
class Known:
    """The context of one message.

    Args:
        keys: directions of the steps that a reply is about, in the order of the steps; equal keys are one direction.
        chosen: how many of them a device takes at most; 0 for all, step by step.
        size: K, the size of the pool; 0 if there is none.
        round: completed rounds of the state that a message of the server carries.
        since: completed rounds of the state that the receiver holds; 0 is the base.
        held: that state; None for the base.
        asked: devices of a round (from 1), ascending; who reads a message learns from it which of them counted.
        keys_of: directions of the steps of a round and device, in their order.
        shared: the directions of a round are those of all its devices, and a round is one entry.
        factor: what a step is times its slope, by the number of slopes of its round that counted.
        like: what dense tensors must be by name, shape and type; None if nothing is known of them.
        layers: the tuned tensors by depth; nothing where messages do not follow layers.
        is_state: the message carries a state, which may bring residuals of the base beneath those tensors.
    """

    keys: Sequence[int] = ()
    size: int = 0
    round: int = 0
    since: int = 0
    held: Update | None = None
    asked: Callable[[int], Sequence[int]] = field(default=nobody)
    keys_of: Callable[[int, int], Sequence[int]] = field(default=nothing)
    shared: bool = False
    factor: Callable[[int], float] = field(default=one)
    like: Update | None = None
    layers: Layers = ()
    is_state: bool = False
    chosen: int = 0
