"""Tensors set aside on disk, to come back to: they cost no memory and leave no file behind."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch

from edgetune.core.errors import OutputError


class Snapshot:
    """A nameless temporary file that holds the bits of some tensors.

    The system drops the file when the process ends, in whatever way; its pages are the system's, which writes them out
    when memory is short.

    Args:
        folder: where the file lies; the system's temporary folder if not given.

    Raises:
        OutputError: if no file can be made there.
    Cost: as many bytes of disk as the tensors have; a copy through the system's page cache each way.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        except OSError as error:
            raise self._failed(error) from error
        weakref.finalize(self, self._file.close)

    def write(self, tensors: Iterable[torch.Tensor]) -> None:
        """Set tensors aside in place of what was there.

        Raises:
            OutputError: if the disk is full.
        """
        try:
            self._file.seek(0)
            for tensor in tensors:
                self._file.write(_bytes(tensor.cpu()))
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def read(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors, the same in the same order, their bits back.

        Raises:
            OutputError: if the disk fails.
        """
        try:
            self._file.seek(0)
            for tensor in tensors:
                here = tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
                if self._file.readinto(_bytes(here)) != here.numel() * here.element_size():
                    raise OSError(0, "the file is shorter than what was written")
                if here is not tensor:
                    tensor.copy_(here)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot set the weights aside for a device's steps: {error.strerror or error}",
            where=self._folder or tempfile.gettempdir(),
            hint="free as many bytes as the weights have",
        )


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
