"""A folder with packed layers (GPTQ, compressed-tensors) as a base: what is packed is read, and never written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.installed.base import Base, Form, Written
from edgetune.installed.folder import FolderBase
from edgetune.models.packed import PackedWeights, turned_in
from edgetune.models.packing import Packing, packing_in


class PackedFolderBase(FolderBase):
    """A Hugging Face folder whose layers are packed: ledgers of its other weights are applied, and adapters written.

    Args:
        folder: with safetensors weights.
        packing: what its configuration says.

    Raises:
        ModelError: if it is no whole model.
    Cost: reads all weights once, for their digest.
    """

    def __init__(self, folder: Path, packing: Packing) -> None:
        self._packing = packing
        super().__init__(folder)

    def read(self, name: str) -> torch.Tensor:
        """Return a parameter in float32; a packed one as its codes mean it."""
        return self._weights[name].to(torch.float32, copy=True)

    def write(self, target: Path, names: Iterable[str], form: Form, said: dict[str, str]) -> Written:
        """Write a folder of the same files.

        Raises:
            ModelError: if a packed layer would have other values: codes and scales that were solved for others hold
                them badly, so nothing is written.
            OutputError: if the files cannot be written.
        """
        chosen = list(names)
        packed = [name for name in chosen if name in self._weights.layers]
        if packed:
            raise ModelError(
                f"the ledger changes {len(packed)} layers whose codes are packed, {packed[0]} for one",
                where=self.path,
                hint="edgetune compress FOLDER --ledger LEDGER packs the tuned model anew, edgetune adapter keeps a "
                "LoRA beside it",
            )
        return super().write(target, chosen, form, said)

    def _weights_digest(self, folder: Path, outline: PreTrainedModel) -> str:
        self._weights = PackedWeights(self.files, self._packing, turned_in(outline))
        return self._weights.digest

    def _shape(self, name: str) -> tuple[int, ...] | None:
        # A packed layer's shape takes unpacking; the reader refuses what does not fit.
        return (
            tuple(self.outline.get_parameter(name).shape)
            if name in self._weights.layers
            else super()._shape(name)
        )


def folder_base(folder: Path) -> Base:
    """Return a model folder as a base, packed or not.

    Raises:
        ModelError: as the two; also if it is packed in a way that is not read.
    """
    packing = packing_in(folder)
    return FolderBase(folder) if packing is None else PackedFolderBase(folder, packing)
