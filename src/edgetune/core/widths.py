"""How wide each layer of a decoder is once it has been pruned: feed-forward channels and attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgetune.core.errors import ModelError

ATTRIBUTE = "layer_widths"
"""Field of a configuration that says how wide its layers are, where they differ."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Widths by layer; 0 stands for a sub-module that is not there.

    Args:
        feed_forward: channels of each feed-forward network.
        heads: query heads of each attention.
        kv_heads: key-value heads of each attention.

    Raises:
        ModelError: if the three are not of one length, a number is negative, or heads cannot share key-value heads.
    """

    feed_forward: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.feed_forward), len(self.heads), len(self.kv_heads)}
        numbers = (*self.feed_forward, *self.heads, *self.kv_heads)
        if len(lengths) != 1 or any(type(one) is not int or one < 0 for one in numbers):
            raise ModelError("widths are three lists of one length of numbers from 0", where=ATTRIBUTE)
        for layer, (heads, kv) in enumerate(zip(self.heads, self.kv_heads, strict=True)):
            if (kv == 0) != (heads == 0) or (kv and heads % kv):
                what = f"{heads} heads cannot share {kv} key-value heads"
                raise ModelError(what, where=f"{ATTRIBUTE}, layer {layer}")

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike and whole, which an ordinary configuration can say."""
        alike = all(len(set(one)) == 1 for one in (self.feed_forward, self.heads, self.kv_heads))
        return alike and min(*self.feed_forward, *self.heads) > 0

    def as_json(self) -> dict[str, list[int]]:
        """Return the widths as a configuration or a file holds them."""
        return {name: list(one) for name, one in asdict(self).items()}

    @classmethod
    def read(cls, said: Any) -> Widths:
        """Return widths from what `as_json` gave.

        Raises:
            ModelError: if it is anything else.
        """
        names = ("feed_forward", "heads", "kv_heads")
        if not isinstance(said, Mapping) or set(said) != set(names):
            raise ModelError(f"widths are {', '.join(names)}", where=ATTRIBUTE)
        if not all(isinstance(said[name], list) for name in names):
            raise ModelError("widths are lists", where=ATTRIBUTE)
        return cls(*(tuple(said[name]) for name in names))


def widths_of(config: Any) -> Widths | None:
    """Return the widths that a configuration names layer by layer; None for an ordinary one."""
    said = getattr(config, ATTRIBUTE, None)
    return None if said is None else Widths.read(said)
