"""Write the header of a GGUF file after another's: what is not changed is copied byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgetune.core.cursor import Cursor
from edgetune.core.gguf_read import ARRAY, MAGIC, SCALARS, STRING

UINT32 = 4
"""GGUF's number of an unsigned 32-bit number."""
VERSION = 3


def text_pair(key: str, text: str) -> bytes:
    """Return a metadata entry that is a text."""
    return _string(key) + struct.pack("<I", STRING) + _string(text)


def number_pair(key: str, number: int) -> bytes:
    """Return a metadata entry that is an unsigned 32-bit number."""
    return _string(key) + struct.pack("<II", UINT32, number)


def raw_pairs(path: Path) -> dict[str, bytes]:
    """Return the metadata entries of a file that `read_gguf` has checked, encoded, in the file's order.

    Cost: the metadata in memory, some megabytes for a large vocabulary.
    """
    spans = dict[str, tuple[int, int]]()
    with path.open("rb") as file:
        cursor = Cursor(path, file)
        cursor.bytes(len(MAGIC))
        cursor.number("I")
        _, pairs = cursor.unpack("QQ")
        for _ in range(pairs):
            begin = cursor.place
            key = cursor.string()
            _pass_value(cursor, cursor.number("I"))
            spans[key] = (begin, cursor.place)
        file.seek(0)
        head = file.read(cursor.place)
    return {key: head[begin:end] for key, (begin, end) in spans.items()}


def header(
    pairs: Mapping[str, bytes], tensors: Iterable[tuple[str, int, tuple[int, ...], int]], alignment: int
) -> tuple[bytes, list[int]]:
    """Return the bytes before the first tensor, and where each tensor begins.

    Args:
        pairs: encoded metadata entries by key.
        tensors: name, ggml's number of its type, shape (outermost dimension first) and bytes, in order.
        alignment: multiples at which tensors begin, as the metadata says.
    """
    infos, offsets, place = list[bytes](), list[int](), 0
    for name, kind, shape, size in tensors:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(_string(name) + dimensions + struct.pack("<IQ", kind, place))
        offsets.append(place)
        place += -(-size // alignment) * alignment
    begin = MAGIC + struct.pack("<IQQ", VERSION, len(infos), len(pairs))
    head = begin + b"".join(pairs.values()) + b"".join(infos)
    head += bytes(-len(head) % alignment)
    return head, [len(head) + offset for offset in offsets]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pass_value(cursor: Cursor, kind: int) -> None:
    if kind == STRING:
        cursor.string()
    elif kind != ARRAY:
        cursor.skip(struct.calcsize(f"<{SCALARS[kind]}"))
    else:
        inner, count = cursor.unpack("IQ")
        if inner in SCALARS:
            cursor.skip(count * struct.calcsize(f"<{SCALARS[inner]}"))
        else:
            for _ in range(count):
                cursor.string()
