"""Scratch memory for perturbed tensors, reused from module to module."""

from __future__ import annotations

import torch


class Scratch:
    """Hand out tensors and take them back; at most as many buffers exist as are in use at once.

    The first buffer is sized for the largest tensor, so that a whole forward pass allocates once.

    Args:
        largest: elements of the largest tensor that will be asked for.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._free: list[torch.Tensor] = []

    def take(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an uninitialised tensor of the same shape, dtype and device, and the buffer to give back."""
        need = like.numel()
        for index, buffer in enumerate(self._free):
            if buffer.numel() >= need and buffer.dtype == like.dtype and buffer.device == like.device:
                del self._free[index]
                break
        else:
            size = self._largest if not self._free and need * 2 > self._largest else need
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:need].view(like.shape), buffer

    def give_back(self, buffer: torch.Tensor) -> None:
        """Return a buffer for reuse; the smallest come first, so that a bias does not take the big one."""
        self._free.append(buffer)
        self._free.sort(key=torch.Tensor.numel)
