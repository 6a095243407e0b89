"""Write a model as a folder that loads again; what is there at any moment is whole or is no model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgetune.core.errors import OutputError
from edgetune.core.files import PARTIAL, unwritable
from edgetune.core.widths import widths_of
from edgetune.models.by_layer import WIDTHS_FILE, write_config_by_layer
from edgetune.models.packing import packing_in
from edgetune.models.quiet import quiet
from edgetune.models.weights import weight_files

WORDS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "chat_template*", "generation_config.json",
)  # fmt: skip
"""Files of a model folder that say how text becomes tokens and where answers end."""
LAST = ("config.json",)
"""Without it a folder is no model."""


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the type of the first matrix that a model folder stores; float32 for a GGUF file and packed layers."""
    if folder.is_file() or packing_in(folder) is not None:
        return torch.float32
    with safe_open(weight_files(folder)[0], framework="pt") as file:
        return next((file.get_tensor(name).dtype for name in file.keys()), torch.float32)  # noqa: SIM118


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, words: Path | None = None
) -> None:
    """Write a model with its tokenizer as a folder.

    Everything is written beside its final place first. The configuration comes last, and an older one goes first, so
    that a killed writer leaves a folder that is refused as no model.

    Args:
        model: in the type it is stored in; layers may differ in width, which only this package reads.
        tokenizer: its tokenizer.
        folder: created if missing; other files in it stay.
        words: a model folder whose tokenizer and generation files are copied as they are.

    Raises:
        OutputError: if the folder cannot be written to, or holds files of another model that this one lacks.
    Cost: the model's size on disk.
    """
    write_folder(folder, lambda partial: _fill(partial, model, tokenizer, words))


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a model folder beside its final place, and move its files there.

    Args:
        folder: as in `save_model`.
        fill: called once with an empty folder.

    Raises:
        Whatever `fill` raises; nothing is there then but what was before.
        OutputError: as `save_model`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_other_weights(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL) as name, quiet():
            partial = Path(name)
            fill(partial)
            for old in (*LAST, WIDTHS_FILE):
                (folder / old).unlink(missing_ok=True)
            umask = os.umask(0)
            os.umask(umask)
            for file in _in_order(partial):
                file.chmod(0o666 & ~umask)
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                file.replace(folder / file.name)
    except OSError as error:
        raise unwritable(error, folder) from error


def _fill(
    partial: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: Path | None
) -> None:
    saved: Any = model
    saved.save_pretrained(partial, max_shard_size="1TB")
    if widths_of(model.config) is not None:
        write_config_by_layer(partial, model.config)
    write_words(partial, tokenizer, words)


def refuse_other_weights(folder: Path) -> None:
    """Refuse a folder that holds files of another model, which would stand beside the new one's.

    Raises:
        OutputError: if there are any, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError("not a folder", where=folder, hint="choose another --out")
    odd = [one.name for one in folder.glob("*.safetensors*") if one.name != "model.safetensors"]
    if odd:
        raise OutputError(
            f"{odd[0]} of another model is in this folder", where=folder, hint="choose another --out"
        )


def write_words(partial: Path, tokenizer: PreTrainedTokenizerBase, words: Path | None) -> None:
    """Write the files of a tokenizer into a folder: those of a model folder as they are, if there is one."""
    if words is None or words.is_file():
        tokenizer.save_pretrained(partial)
        return
    for pattern in WORDS:
        for file in words.glob(pattern):
            shutil.copyfile(file, partial / file.name)


def _in_order(partial: Path) -> Iterator[Path]:
    files = sorted(one for one in partial.iterdir() if one.is_file())
    yield from (one for one in files if one.name not in LAST)
    yield from (one for one in files if one.name in LAST)
