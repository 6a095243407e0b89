"""GGUF files: a small good one with its metadata, arrays and tensor entries changed, opened as a chat opens it."""

from __future__ import annotations

import contextlib
import math
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from edgetune.core.errors import EdgetuneError
from edgetune.core.gguf_read import ARRAY, SCALARS, STRING, read_gguf, read_tensors
from edgetune.export import process
from edgetune.export.chat import Manner, chat
from edgetune.export.gguf_file import write_gguf
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import EMBEDDED
from fuzz.target import FLOATS, INTEGERS, mutated_bytes, refusal, require

NUMBERS = (*INTEGERS, 2**64 - 1)
WORDS = (
    "",
    "x",
    "llama",
    "gpt2",
    "bert",
    "t5",
    "mamba",
    "default",
    "x" * 5000,
    "\N{SNOWMAN}",
    "a\0b",
    "\x1b[31m",
)
TEMPLATES = (
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
    "{{ messages[5].content.foo.bar }}",
    "{% if %}",
    "{{ 'x' * 1000000000 }}",
    "{% for m in messages %}{{ raise_exception('no') }}{% endfor %}",
    "{{ 1/0 }}",
)
IDS = torch.tensor([[0, 1, 2]])
SECONDS = 20
"""How long llama.cpp may take over one case."""


@dataclass(frozen=True)
class Pair:
    """One metadata entry: its type, its value, and for an array the type of its elements."""

    key: str
    kind: int
    value: Any
    element: int = 0


@dataclass(frozen=True)
class Info:
    """One tensor entry; dimensions as the file stores them, innermost first."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


Change = Callable[[Random, list[Pair], list[Info]], None]


class Gguf:
    """Files for `chat`, `serve`, `evaluate --gguf` and the check of an export."""

    name = "gguf"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        process.LOAD_SECONDS = process.ANSWER_SECONDS = SECONDS
        process.TOKEN_SECONDS = 0
        base = load_backbone(EMBEDDED)
        good = write_gguf(Path(self._folder.name) / "good.gguf", base.model, base.tokenizer, quantised={})
        self._pairs, self._infos, self._data = _decode(good)
        require(
            self.check(_encode(self._pairs, self._infos, self._data)) == "accepted", "the good file fails"
        )

    def case(self, rng: Random) -> bytes:
        """Return a file with up to three changes."""
        pairs, infos = list(self._pairs), list(self._infos)
        for _ in range(rng.randrange(1, 4)):
            if pairs and infos:
                rng.choice(CHANGES)(rng, pairs, infos)
        head, data = _encode(pairs, infos, b""), self._data
        if rng.random() < 0.2:
            head = mutated_bytes(head, rng)
        raw = head + data
        return raw[: rng.randrange(len(raw))] if rng.random() < 0.1 else raw

    def check(self, case: bytes) -> str:
        """Read every tensor, open the file as a base model, and talk to it."""
        path = Path(self._folder.name) / "case.gguf"
        path.write_bytes(case)
        with contextlib.suppress(EdgetuneError):
            for _ in read_tensors(path):
                pass
        opened = refusal(lambda: load_backbone(path))
        if not isinstance(opened, str):
            require(bool(opened.model(input_ids=IDS).logits.isfinite().all()), "a base without finite logits")
        lines = iter(["hello", "/exit"])
        found = refusal(
            lambda: chat(
                [path],
                read=lambda _: next(lines),
                write=lambda _: None,
                manner=Manner(max_new_tokens=2),
                context=64,
            )
        )
        return found if isinstance(found, str) else "accepted"


def _decode(path: Path) -> tuple[list[Pair], list[Info], bytes]:
    file = read_gguf(path)
    kinds: dict[type, int] = {bool: 7, int: 4, float: 6, str: STRING}
    pairs = [Pair(key, kinds[type(value)], value) for key, value in file.metadata.items()]
    pairs += [Pair(key, ARRAY, file.array(key), array.kind) for key, array in file.arrays.items()]
    start = min(tensor.offset for tensor in file.tensors)
    infos = [Info(one.name, one.shape[::-1], one.kind, one.offset - start) for one in file.tensors]
    return pairs, infos, path.read_bytes()[start:]


def _encode(pairs: list[Pair], infos: list[Info], data: bytes) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(pairs))]
    for pair in pairs:
        parts += [_text(pair.key), struct.pack("<I", pair.kind)]
        if pair.kind == ARRAY:
            parts.append(struct.pack("<IQ", pair.element, len(pair.value)))
            parts += [_value(pair.element, value) for value in pair.value]
        else:
            parts.append(_value(pair.kind, pair.value))
    for info in infos:
        shape = [size % 2**64 for size in info.shape]
        layout = f"<I{len(shape)}QIQ"
        parts += [_text(info.name), struct.pack(layout, len(shape), *shape, info.kind, info.offset % 2**64)]
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % 32) + data


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text(str(value))
    layout = f"<{SCALARS[kind]}"
    number = 1.0 if isinstance(value, str) else float(value)
    if SCALARS[kind] in "fd":
        # Single precision ends before 1e39.
        return struct.pack(layout, number if abs(number) < 1e38 or math.isinf(number) else math.nan)
    size = struct.calcsize(layout)
    whole = 1 if isinstance(value, str) or not math.isfinite(number) else int(value)
    return (whole % (1 << 8 * size)).to_bytes(size, "little")


def _other_value(rng: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Change the value of a key, perhaps its type too."""
    at = rng.randrange(len(pairs))
    pair = pairs[at]
    if pair.kind == ARRAY:
        return
    if pair.key == "tokenizer.chat_template":
        pair = replace(pair, value=rng.choice((*TEMPLATES, *WORDS)))
    else:
        pair = replace(pair, value=rng.choice(WORDS if pair.kind == STRING else (*NUMBERS, *FLOATS)))
    if rng.random() < 0.2:
        pair = replace(pair, kind=rng.choice((*SCALARS, STRING)))
    pairs[at] = pair


def _other_array(rng: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Shorten, lengthen, double or retype an array."""
    arrays = [at for at, pair in enumerate(pairs) if pair.kind == ARRAY and pair.value]
    if not arrays:
        return
    at = rng.choice(arrays)
    pair, values = pairs[at], list(pairs[at].value)
    where, change = rng.randrange(len(values)), rng.randrange(6)
    if change == 0:
        del values[where:]
    elif change == 1:
        values += values[where:]
    elif change == 2:
        values[where] = values[0]
    elif change == 3:
        values[where] = rng.choice(WORDS if pair.element == STRING else NUMBERS)
    elif change == 4:
        values = []
    else:
        pair, values = replace(pair, element=rng.choice((*SCALARS, STRING))), [1] * min(where, 50)
    pairs[at] = replace(pair, value=values)


def _other_keys(rng: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Leave a key out, write it twice, or rename it."""
    at, change = rng.randrange(len(pairs)), rng.randrange(3)
    if change == 0:
        del pairs[at]
    elif change == 1:
        pairs.append(pairs[at])
    else:
        pairs[at] = replace(pairs[at], key=rng.choice((*WORDS, "llama.rope.scaling.type", "split.count")))


def _other_tensor(rng: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Change what a tensor's entry says."""
    at, change = rng.randrange(len(infos)), rng.randrange(6)
    info = infos[at]
    if change == 0:
        infos[at] = replace(info, name=rng.choice((*WORDS, infos[0].name)))
    elif change == 1:
        infos[at] = replace(info, shape=tuple(rng.choice(NUMBERS) for _ in range(rng.randrange(6))))
    elif change == 2:
        infos[at] = replace(info, kind=rng.choice((*range(42), 999)))
    elif change == 3:
        infos[at] = replace(info, offset=rng.choice((*NUMBERS, infos[0].offset)))
    elif change == 4:
        del infos[at]
    else:
        infos[at] = replace(info, shape=info.shape[::-1])


CHANGES: tuple[Change, ...] = (_other_value, _other_value, _other_array, _other_keys, _other_tensor)
