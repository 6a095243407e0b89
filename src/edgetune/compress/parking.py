"""Tensors of a forward pass that waits: in memory as long as they are few, then in a file."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from greenlet import greenlet

HELD = 1 << 26
"""Bytes of waiting tensors that stay in memory, 64 MB."""
SMALL = 1 << 14
"""Bytes below which a tensor is not worth a write."""


class Parking:
    """Takes the tensors of passes that wait, and gives them back before these go on.

    A waiting pass keeps its activations in the local variables of its frames. Their storage is written to a file and
    emptied; nobody else may read it until the pass goes on, so that what passes share is left alone.

    Args:
        folder: where the files lie; they have no name, and go with the process. None keeps everything in memory.
        shared: tensors that several passes read: weights, buffers, masks.
    Cost: a write and a read of what waits.
    """

    def __init__(self, folder: Path | None, shared: Iterable[torch.Tensor]) -> None:
        self._folder = folder
        self._shared = {tensor.untyped_storage().data_ptr() for tensor in shared}
        self._files: dict[int, IO[bytes]] = {}
        self._away: dict[int, list[tuple[torch.UntypedStorage, int]]] = {}
        self._here: dict[int, int] = {}

    def take(self, number: int, walker: greenlet) -> None:
        """Put away what a waiting pass keeps; where the file cannot be written, it stays in memory."""
        if self._folder is None or number in self._away or number in self._here:
            return
        found = {
            storage.data_ptr(): storage
            for storage in (
                tensor.untyped_storage() for tensor in _locals(walker) if tensor.device.type == "cpu"
            )
            if storage.nbytes() >= SMALL and storage.resizable()
        }
        kept = [storage for place, storage in found.items() if place not in self._shared]
        total = sum(storage.nbytes() for storage in kept)
        if sum(self._here.values()) + total <= HELD:
            self._here[number] = total
            return
        try:
            file = self._files.get(number) or tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - kept open
            self._files[number] = file
            file.seek(0)
            for storage in kept:
                file.write(_bytes(storage))
            file.flush()
        except OSError:
            return
        self._away[number] = [(storage, storage.nbytes()) for storage in kept]
        for storage in kept:
            storage.resize_(0)

    def give_back(self, number: int) -> None:
        """Bring back what was put away of a pass.

        Raises:
            OSError: if the file cannot be read any more.
        """
        self._here.pop(number, None)
        away = self._away.pop(number, [])
        if not away:
            return
        file = self._files[number]
        file.seek(0)
        for storage, size in away:
            storage.resize_(size)
            view = _bytes(storage)
            while view:
                read = file.readinto(view)  # type: ignore[attr-defined]
                if not read:
                    raise OSError("a file of waiting activations is shorter than what was written to it")
                view = view[read:]
        file.seek(0)
        file.truncate()

    def close(self) -> None:
        """Close the files, with which they go."""
        for file in self._files.values():
            file.close()


def _bytes(storage: torch.UntypedStorage) -> memoryview:
    # Not by way of numpy, after which a storage cannot be emptied.
    return memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())).cast("B")


def _locals(walker: greenlet) -> Iterator[torch.Tensor]:
    """Yield the tensors in the local variables of a pass that waits."""
    frame = walker.gr_frame
    while frame is not None:
        values = frame.f_locals
        yield from tensors_in(list(values.values()))
        if type(values) is dict:  # before Python 3.13 a copy that would keep them alive
            values.clear()
        frame = frame.f_back


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value, and in tuples, lists and dictionaries of it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif type(value) in {tuple, list}:
        for one in value:
            yield from tensors_in(one)
    elif type(value) is dict:
        yield from tensors_in(list(value.values()))
