"""Feed damaged and odd GGUF files to everything that opens one: a right result or one typed line, never anything else.

    python scripts/fuzz_gguf.py --files 1000 --seed 0 --keep DIR

Files are made from a small good one: metadata of other values and types, keys left out or doubled, arrays shorter,
longer or of other types, tensors renamed, moved, reshaped or of other types, bytes flipped, the end cut off.
"""

from __future__ import annotations

import argparse
import contextlib
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.core.errors import EdgetuneError
from edgetune.core.keys import stream
from edgetune.export import process
from edgetune.export.chat import chat
from edgetune.export.gguf_file import write_gguf
from edgetune.export.gguf_read import ARRAY, SCALARS, STRING, read_gguf, read_tensors
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import EMBEDDED

Random = np.random.Generator
NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    64,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
]
TEXTS = [
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
    "{{ 1/0 }}",
    "a\0b",
]
TEMPLATES = [
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
    "{{ messages[5].content.foo.bar }}",
    "{% if %}",
    "{{ 'x' * 1000000000 }}",
    "{% set ns = namespace(a=1) %}{% for m in messages %}{{ raise_exception('no') }}{% endfor %}",
]


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


def _number(kind: int, value: float) -> bytes:
    layout = f"<{SCALARS[kind]}"
    if SCALARS[kind] in "fd":
        return struct.pack(layout, float(value))
    size = struct.calcsize(layout)
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    return _text(str(value)) if kind == STRING else _number(kind, value if not isinstance(value, str) else 1)


def encode(pairs: list[Pair], infos: list[Info], data: bytes) -> bytes:
    """Return the bytes of a file."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(pairs))]
    for pair in pairs:
        parts += [_text(pair.key), struct.pack("<I", pair.kind)]
        if pair.kind == ARRAY:
            parts.append(struct.pack("<IQ", pair.element, len(pair.value)))
            parts += [_value(pair.element, value) for value in pair.value]
        else:
            parts.append(_value(pair.kind, pair.value))
    for info in infos:
        layout = f"<I{len(info.shape)}QIQ"
        shape = [size % 2**64 for size in info.shape]
        parts += [_text(info.name), struct.pack(layout, len(shape), *shape, info.kind, info.offset % 2**64)]
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % 32) + data


def decode(path: Path) -> tuple[list[Pair], list[Info], bytes]:
    """Take a good file apart."""
    file = read_gguf(path)
    kinds: dict[type, int] = {bool: 7, int: 4, float: 6, str: STRING}
    pairs = [Pair(key, kinds[type(value)], value) for key, value in file.metadata.items()]
    pairs += [Pair(key, ARRAY, file.array(key), array.kind) for key, array in file.arrays.items()]
    start = min(tensor.offset for tensor in file.tensors)
    infos = [Info(one.name, one.shape[::-1], one.kind, one.offset - start) for one in file.tensors]
    return pairs, infos, path.read_bytes()[start:]


def _pick(random: Random, items: list[Any]) -> Any:
    return items[int(random.integers(len(items)))]


def other_value(random: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Change the value of a key, perhaps its type too."""
    at = int(random.integers(len(pairs)))
    pair = pairs[at]
    if pair.key == "tokenizer.chat_template":
        pairs[at] = replace(pair, value=_pick(random, TEMPLATES + TEXTS))
    elif pair.kind == STRING:
        pairs[at] = replace(pair, value=_pick(random, TEXTS))
    elif pair.kind != ARRAY:
        pairs[at] = replace(pair, value=_pick(random, [*NUMBERS, -1, float("nan"), float("inf"), 1e-45]) or 0)
        if not np.isfinite(float(pairs[at].value)) and SCALARS[pair.kind] not in "fd":
            pairs[at] = replace(pair, value=0)
    if random.random() < 0.2 and pair.kind != ARRAY:
        pairs[at] = replace(pairs[at], kind=_pick(random, [*SCALARS, STRING]), value=1)


def other_array(random: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Shorten, lengthen, double or retype an array."""
    at = _pick(random, [at for at, pair in enumerate(pairs) if pair.kind == ARRAY])
    pair = pairs[at]
    values = list(pair.value)
    where = int(random.integers(len(values) + 1))
    change = int(random.integers(6))
    if change == 0:
        values = values[:where]
    elif change == 1:
        values = values + values[where:]
    elif change == 2 and where < len(values):
        values[where] = values[0]
    elif change == 3 and where < len(values):
        values[where] = _pick(random, TEXTS) if pair.element == STRING else _pick(random, NUMBERS)
    elif change == 4:
        values = []
    else:
        pairs[at] = replace(pair, element=_pick(random, [*SCALARS, STRING]), value=[1] * min(where, 50))
        return
    pairs[at] = replace(pair, value=values)


def other_keys(random: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Leave a key out, or write it twice, or rename it."""
    at, change = int(random.integers(len(pairs))), int(random.integers(3))
    if change == 0:
        del pairs[at]
    elif change == 1:
        pairs.append(pairs[at])
    else:
        pairs[at] = replace(pairs[at], key=_pick(random, [*TEXTS, "llama.rope.scaling.type", "split.count"]))


def other_tensor(random: Random, pairs: list[Pair], infos: list[Info]) -> None:
    """Change what a tensor's entry says."""
    at, change = int(random.integers(len(infos))), int(random.integers(6))
    info = infos[at]
    if change == 0:
        infos[at] = replace(info, name=_pick(random, [*TEXTS, infos[0].name]))
    elif change == 1:
        infos[at] = replace(info, shape=tuple(_pick(random, NUMBERS) for _ in range(int(random.integers(6)))))
    elif change == 2:
        infos[at] = replace(info, kind=_pick(random, [*range(42), 999]))
    elif change == 3:
        infos[at] = replace(info, offset=_pick(random, [*NUMBERS, infos[0].offset]))
    elif change == 4:
        del infos[at]
    else:
        infos[at] = replace(info, shape=info.shape[::-1])


CHANGES: list[Callable[[Random, list[Pair], list[Info]], None]] = [
    other_value,
    other_value,
    other_array,
    other_keys,
    other_tensor,
]


def damaged(random: Random, good: tuple[list[Pair], list[Info], bytes]) -> bytes:
    """Return one file."""
    pairs, infos, data = list(good[0]), list(good[1]), good[2]
    for _ in range(int(random.integers(1, 4))):
        if pairs and infos:
            _pick(random, CHANGES)(random, pairs, infos)
    raw = bytearray(encode(pairs, infos, data))
    if random.random() < 0.2:
        for place in random.integers(0, len(raw) - len(data), int(random.integers(1, 8))):
            raw[int(place)] = int(random.integers(256))
    if random.random() < 0.1:
        del raw[int(random.integers(len(raw))) :]
    return bytes(raw)


def feed(path: Path) -> str:
    """Open a file in every way and return what came of it: `works`, or the kind of the typed error."""
    lines = iter(["hello", "/exit"])
    try:
        with contextlib.suppress(EdgetuneError):
            for _ in read_tensors(path):
                pass
        chat(path, read=lambda _: next(lines), write=lambda _: None, max_new_tokens=2, context=64)
    except EdgetuneError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise ValueError(f"not one short line: {str(error)[:200]!r}") from error
        said = str(error).partition(": ")[2]
        return f"{type(error).__name__}: {' '.join(said.split()[:5])}"
    return "works"


def main() -> int:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Folder for files that were answered wrongly.")
    options = parser.parse_args()
    process.LOAD_SECONDS = process.ANSWER_SECONDS = 20
    process.TOKEN_SECONDS = 0
    found: Counter[str] = Counter()
    wrong, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        base = load_backbone(EMBEDDED)
        seed = write_gguf(Path(folder) / "good.gguf", base.model, base.tokenizer, quantised={})
        good = decode(seed)
        if encode(*good) != seed.read_bytes() and feed(seed) != "works":
            raise SystemExit("the good file does not work")
        path = Path(folder) / "file.gguf"
        for number in range(options.files):
            raw = damaged(stream(options.seed, "gguf", number), good)
            path.write_bytes(raw)
            try:
                found[feed(path)] += 1
            except Exception as error:
                wrong += 1
                print(f"file {number}: {type(error).__name__}: {error}", flush=True)
                if options.keep is not None:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{options.seed}-{number}.gguf").write_bytes(raw)
    for kind, count in found.most_common():
        print(f"{count:6} {kind}")
    print(f"{options.files} files, {wrong} answered wrongly, {time.monotonic() - start:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
