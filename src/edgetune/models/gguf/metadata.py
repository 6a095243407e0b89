"""The metadata of a GGUF file, one checked value at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import SCALARS, STRING, GgufFile

LARGEST = 1 << 31
"""No count of a model reaches it."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file says of its model, by key: the architecture's own without its prefix, `tokenizer.` ones whole.

    Args:
        file: the file.
        prefix: of the architecture's own keys, for example `llama.`.
        asked: keys that were asked for.
    """

    file: GgufFile
    prefix: str
    asked: set[str] = field(default_factory=set)

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a count.

        Raises:
            ModelError: if it is missing and has no default, no whole number, or absurd.
        """
        value = self._scalar(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < LARGEST:
            self.refuse(key, f"{str(value)[:40]!r} is no number of this kind")
        return value

    def by_layer(self, key: str, layers: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return a count for every layer, 0 for what a layer lacks; one number stands for all of them.

        Raises:
            ModelError: if it is missing and has no default, or is no count for each of so many layers.
        """
        full = self._full(key)
        if full not in self.file.arrays:
            missing = default is not None and full not in self.file.metadata
            return default if missing and default else (self.whole(key),) * layers
        self.asked.add(key)
        found = self.numbers(key)
        if len(found) != layers or any(type(one) is not int or not 0 <= one < LARGEST for one in found):
            self.refuse(key, f"these are no counts of {layers} layers")
        return tuple(found)

    def real(self, key: str, default: float | None = None) -> float:
        """Return a positive number: the shortest decimal that is the stored float32, as configurations write it.

        Raises:
            ModelError: if it is missing and has no default, no number, or not positive and finite.
        """
        value = self._scalar(key, default)
        if isinstance(value, bool | str) or not (math.isfinite(value) and value > 0):
            self.refuse(key, f"{str(value)[:40]!r} is no positive number")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text.

        Raises:
            ModelError: if it is missing and has no default, or no text.
        """
        value = self._scalar(key, default)
        if not isinstance(value, str):
            self.refuse(key, "it is no text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean.

        Raises:
            ModelError: if it is something else.
        """
        value = self._scalar(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "it is neither true nor false")
        return value

    def token(self, key: str, tokens: int) -> int | None:
        """Return the id of a token, or None if the file names none.

        Raises:
            ModelError: if there is no such token.
        """
        if key not in self.file.metadata:
            return None
        value = self.whole(key, least=0)
        if value >= tokens:
            self.refuse(key, f"there are {tokens} tokens, not {value}")
        return value

    def texts(self, key: str) -> list[str]:
        """Return an array of texts; empty if there is none.

        Raises:
            ModelError: if it is of another type.
        """
        return self._array(key, lambda kind: kind == STRING, "no array of texts")

    def numbers(self, key: str) -> list[Any]:
        """Return an array of numbers; empty if there is none.

        Raises:
            ModelError: if it is of another type.
        """
        return self._array(key, lambda kind: kind in SCALARS, "no array of numbers")

    def refuse_unknown(self, harmless: frozenset[str]) -> None:
        """Refuse a key of the architecture that nothing has asked for and that could change results.

        Args:
            harmless: keys, without prefix, that change none.

        Raises:
            ModelError: naming the key.
        """
        for key, value in {**self.file.metadata, **self.file.arrays}.items():
            name = key.removeprefix(self.prefix)
            if name != key and name not in harmless and name not in self.asked and value not in (0, ""):
                self.refuse(name, "this setting is not known here, and it may change what is computed")

    def refuse(self, key: str, what: str) -> NoReturn:
        """Refuse the file for what it says under a key."""
        raise ModelError(f"{self._full(key)[:80]}: {what}", where=self.file.path)

    def _full(self, key: str) -> str:
        return key if key.startswith("tokenizer.") else f"{self.prefix}{key}"

    def _scalar(self, key: str, default: Any) -> Any:
        self.asked.add(key)
        full = self._full(key)
        if full in self.file.arrays:
            self.refuse(key, "one value for each layer is not supported")
        value = self.file.metadata.get(full, default)
        if value is None:
            self.refuse(key, "it is missing")
        return value

    def _array(self, key: str, fits: Callable[[int], bool], otherwise: str) -> list[Any]:
        full = self._full(key)
        stored = self.file.arrays.get(full)
        if stored is None and full not in self.file.metadata:
            return []
        if stored is None or not fits(stored.kind):
            self.refuse(key, otherwise)
        return self.file.array(full)
