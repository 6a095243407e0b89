"""A LoRA ledger as an adapter: for llama.cpp a GGUF file, for peft a folder; the base stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetune.core.canonical import saved
from edgetune.core.errors import ModelError
from edgetune.core.files import write_atomic
from edgetune.core.ledger import Ledger
from edgetune.export.adapter import write_adapter
from edgetune.installed.base import Base
from edgetune.installed.change import Change, LowRank
from edgetune.installed.reading import PEFT, change_of
from edgetune.installed.whole import whole_folder

OURS = ("seed", "freeze_a", "initialiser")
"""What a ledger says beside peft's own settings."""


def low_rank(ledger: Ledger, base: Base, *, key: bytes | None = None, where: Path | None = None) -> LowRank:
    """Return the factors of a LoRA ledger.

    Args:
        ledger: what was learnt.
        base: what it belongs to; only its configuration and names are read.
        key: 32 bytes, if the directions are under a secret key.
        where: the ledger's file, for errors.

    Raises:
        ModelError: if the ledger is no LoRA's, says what to use instead; or as `change_of`.
        DigestError: if it belongs to another base.
    """
    base.check(ledger, where or base.path)
    found: Change = change_of(ledger, base.outline, key=key, where=where)
    if not isinstance(found, LowRank):
        raise ModelError(
            f"a ledger of {ledger.method} changes whole weights and has no low-rank factors",
            where=where,
            hint="edgetune apply writes the changed file; tune lora, mezo_lora or fedit for an adapter",
        )
    if found.residuals:
        raise ModelError(
            "this run took whole matrices off the base, which no adapter can hold",
            where=where,
            hint="edgetune apply folds them into a file",
        )
    return found


def write_gguf_adapter(path: Path, change: LowRank, base: Base, ledger: Ledger) -> None:
    """Write the adapter that llama.cpp takes beside a file of the base (`--lora FILE`), atomically.

    Raises:
        ModelError, OutputError, MissingExtraError: as `export.adapter.write_adapter`.
    """
    said = {"base_digest": ledger.base_digest, "ledger_digest": ledger.digest, "method": ledger.method}

    def write(file: Path) -> None:
        write_adapter(file, base.outline.config, change.factors, change.scale, said)

    write_atomic(path, write)


def write_peft_adapter(folder: Path, change: LowRank, base: Base, ledger: Ledger) -> None:
    """Write the folder that `peft.PeftModel.from_pretrained(model, folder)` loads; all of it or nothing.

    Raises:
        OutputError: if there is something in the folder already, or it cannot be written.
    """
    ranks = {right.shape[0] for _, right in change.factors.values()}
    if len(ranks) != 1:
        raise ModelError("peft's file has one rank, these layers differ", hint="write a GGUF adapter instead")
    rank = ranks.pop()
    said: dict[str, Any] = {key: one for key, one in (ledger.adapter or {}).items() if key not in OURS}
    said |= {"r": rank, "lora_alpha": change.scale * rank, "inference_mode": True}
    said["base_model_name_or_path"] = str(base.path)
    tensors = {}
    for layer, (left, right) in change.factors.items():
        tensors[f"{PEFT}{layer}.lora_A.weight"] = right.contiguous()
        tensors[f"{PEFT}{layer}.lora_B.weight"] = left.contiguous()
    data = saved(tensors, {"format": "pt"})
    with whole_folder(folder) as partial:
        (partial / "adapter_model.safetensors").write_bytes(data)
        text = json.dumps(said, indent=2, sort_keys=True) + "\n"
        (partial / "adapter_config.json").write_text(text, encoding="utf-8")
