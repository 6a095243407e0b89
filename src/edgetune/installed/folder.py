"""A model folder as a base: its weight files copied, and tensors overwritten where they lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.files import unwritable
from edgetune.core.widths import widths_of
from edgetune.installed.base import Base, Form, Written
from edgetune.models.by_layer import by_layer
from edgetune.models.config import load_config
from edgetune.models.digest import files_digest
from edgetune.models.identity import base_digest
from edgetune.models.quiet import quiet
from edgetune.models.saving import WORDS
from edgetune.models.tokenizer import first_line
from edgetune.models.weights import stored_entries, stored_shapes, weight_files

KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BESIDE = ("config.json", "widths.json", "model.safetensors.index.json", *WORDS)
"""Files that make a folder of weights a model."""
PROVENANCE = "edgetune.json"
"""Where a folder says what it was made from."""
HEAD = "lm_head.weight"


class FolderBase(Base):
    """A Hugging Face folder.

    Args:
        folder: with safetensors weights.

    Raises:
        ModelError: if it is no whole model, or transformers converts its weights while it loads them.
    Cost: reads all weights once, for their digest.
    """

    def __init__(self, folder: Path) -> None:
        self.files = weight_files(folder)
        config = load_config(folder, stored_shapes(self.files))
        self.entries = stored_entries(self.files)
        outline = _outline(config, folder)
        super().__init__(folder, outline, base_digest(self._weights_digest(folder, outline), config))
        self._names = [name for name, one in outline.named_parameters() if one.is_floating_point()]
        self._embedding: str | None = None
        if HEAD in self.entries and HEAD not in self._names:
            self._tied_head()
        for name, weight in outline.named_parameters():
            if name in self._names and self._shape(name) != tuple(weight.shape):
                raise ModelError(
                    f"the files do not store {name} as the model has it",
                    where=folder,
                    hint="edgetune.load(base, ledger).save_pretrained(folder) converts it",
                )

    def _weights_digest(self, folder: Path, outline: PreTrainedModel) -> str:
        return files_digest(self.files)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return self.entries[name].shape if name in self.entries else None

    def _tied_head(self) -> None:
        """Look at a stored head that the model ties: the embeddings once more, or values of its own."""
        embedding = next((name for name in self._names if self._is_embedding(name)), None)
        if embedding is None:
            return
        if torch.equal(self.read(HEAD), self.read(embedding)):
            self._embedding = embedding
        else:
            self._names.append(HEAD)

    def _is_embedding(self, name: str) -> bool:
        wanted: Any = self.outline.get_input_embeddings()
        return name.endswith(".weight") and self.outline.get_submodule(name.rpartition(".")[0]) is wanted

    def names(self) -> Sequence[str]:
        """Return the parameters, sorted."""
        return sorted(self._names)

    def read(self, name: str) -> torch.Tensor:
        """Return a parameter in float32."""
        with safe_open(self.entries[name].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.to(torch.float32, copy=True)

    def write(self, target: Path, names: Iterable[str], form: Form, said: dict[str, str]) -> Written:
        """Write a folder of the same files; stored types stay, each value is rounded once."""
        changed = 0
        try:
            target.mkdir(exist_ok=True)
            for pattern in BESIDE:
                for file in self.path.glob(pattern):
                    shutil.copyfile(file, target / file.name)
            for file in self.files:
                shutil.copyfile(file, target / file.name)
            for name in names:
                changed += self._put(target, name, form(name, self.read(name)))
            text = json.dumps(said, indent=2, sort_keys=True) + "\n"
            (target / PROVENANCE).write_text(text, encoding="utf-8")
        except OSError as error:
            raise unwritable(error, target) from error
        return Written(changed, len(self._names))

    def _put(self, target: Path, name: str, values: torch.Tensor) -> int:
        """Overwrite a tensor, and a stored head that is the embeddings once more; says how many changed."""
        for copy in (HEAD, name) if name == self._embedding else (name,):
            entry = self.entries[copy]
            stored = values.to(KINDS[entry.kind]).contiguous()
            if not bool(torch.isfinite(stored).all()):
                raise ModelError(f"{copy} does not fit {entry.kind}", where=self.path)
            with (target / entry.file.name).open("r+b") as file:
                file.seek(entry.offset)
                before = file.read(stored.numel() * stored.element_size())
                after = stored.reshape(-1).view(torch.uint8).numpy().tobytes() if stored.numel() else b""
                file.seek(entry.offset)
                file.write(after)
        return int(before != after)


def _outline(config: Any, folder: Path) -> PreTrainedModel:
    """Return a model without values."""
    try:
        with quiet(), torch.device("meta"):
            if widths_of(config) is not None:
                return by_layer(config)(config)
            kind: Any = AutoModelForCausalLM
            model: PreTrainedModel = kind.from_config(config)
            return model
    except ModelError:
        raise
    except Exception as error:  # the library raises many unrelated types
        raise ModelError(f"no model has this configuration: {first_line(error)}", where=folder) from error
