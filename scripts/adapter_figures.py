"""What adapters of ledgers along directions of rank one hold, in figures.

    python scripts/adapter_figures.py out/full/tuned.ledger [out/linear/tuned.ledger ...]

Each ledger lies in the folder of its run, which names model and data. For every run the script writes both adapters,
and compares predictions of the run's held-out records: the replayed model; base and adapter in peft; the weights that
llama.cpp puts together, on a file in F32 and in Q4_0, with and without what its form leaves out. Then llama.cpp itself
computes log-probabilities and answers. It prints Markdown.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgetune.core.ledger import read_ledger
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.lora import Adapter
from edgetune.federation.load import load
from edgetune.installed.adapter import write_gguf_adapter, write_peft_adapter
from edgetune.installed.base import Base
from edgetune.installed.folder import FolderBase
from edgetune.installed.gguf import GgufBase
from edgetune.installed.parts import Parts, parts_of
from edgetune.models.backbone import load_backbone
from edgetune.recipe.prepare import prepare
from edgetune.recipe.quality import reference_of
from edgetune.recipe.recipe import recipe_of_run
from update_figures import QUESTIONS, answers, export

SCORED = 200
"""Tokens whose log-probabilities llama.cpp is asked for."""


def replayed(base: Base, parts: Parts, left: Iterable[str] = ()) -> PreTrainedModel:
    """Return a base with the change of all parameters but some."""
    model, missing = load_backbone(base.path).model, set(left)
    for name, weight in model.named_parameters():
        if parts.change.touches(name) and name not in missing:
            weight.data = parts.change.of(name, base.read(name))
    return model


def gap(base: Path, adapters: list[Path], ids: list[int], model: PreTrainedModel) -> str:
    """Return how far llama.cpp's log-probabilities are from a model's, at most and on average."""
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    with LlamaCpp(
        base, exact=True, context=len(ids) + 8, adapters=[Adapter(one) for one in adapters]
    ) as engine:
        found = torch.tensor(engine.log_probabilities(ids, 1))
    far = found - expected[torch.arange(len(found)), torch.tensor(ids[1:])]
    return f"{far.abs().max():.1e}, mean {far.mean():+.1e}"


def figures(path: Path, work: Path) -> list[str]:
    """Return what is to be said of one run."""
    import peft

    prepared = prepare(recipe_of_run(path.parent), split=False)
    read, base = read_ledger(path), FolderBase(prepared.backbone.folder)
    parts, lines = parts_of(read, base), [f"## {path}: {path.stat().st_size:,} bytes", ""]
    tuned = load(base.path, path)
    before = reference_of(tuned, prepared)
    folder, file = work / "adapter", work / "adapter.gguf"
    write_peft_adapter(folder, parts, base, read)
    left = write_gguf_adapter(file, parts, base, read).left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        placed = peft.PeftModel.from_pretrained(load_backbone(base.path).model, str(folder)).eval()
    size = sum(one.stat().st_size for one in folder.iterdir())
    ids = [token for one in prepared.held_out_examples[:20] for token in one.input_ids][:SCORED]
    with torch.no_grad():
        far = placed(input_ids=torch.tensor([ids])).logits - tuned(input_ids=torch.tensor([ids])).logits
    lines += [
        f"- peft {size:,} bytes, GGUF {file.stat().st_size:,} bytes; not in the GGUF: {len(left)} parameters",
        f"- untuned base: KL {before.of(load_backbone(base.path).model).every:.1e}",
        f"- peft on the base: KL {before.of(placed).every:.1e}, largest gap of a logit {far.abs().max():.1e}",
        f"- all but what GGUF leaves out: KL {before.of(replayed(base, parts, left)).every:.1e}",
    ]
    for kind in ("F32", "Q4_0"):
        stored = export(load_backbone(base.path).model, prepared, kind, work / f"{kind}.gguf")
        held = GgufBase(stored)
        whole, partly = replayed(held, parts), replayed(held, parts, left)
        on = reference_of(whole, prepared)
        lines += [
            f"- {kind} file, {stored.stat().st_size:,} bytes: to the tuned model KL without adapter "
            f"{before.of(load_backbone(stored).model).every:.1e}, replayed on it {before.of(whole).every:.1e}, "
            f"with the GGUF adapter {before.of(partly).every:.1e}; adapter to replayed KL {on.of(partly).every:.1e}",
            f"- llama.cpp on {kind}: log-probabilities off by {gap(stored, [file], ids, partly)}; "
            f"without adapter {gap(stored, [], ids, partly)}",
        ]
    said = zip(prepared.held_out, answers(stored, prepared), answers(stored, prepared, [file]), strict=False)
    lines += ["", "| question | Q4_0 | Q4_0 and the adapter |", "|---|---|---|"]
    for example, old, new in list(said)[:QUESTIONS]:
        asked = " ".join(str(example.instruction).split())[:80]
        lines.append(f"| {asked} | {' '.join(old.split())[:90]} | {' '.join(new.split())[:90]} |")
    return [*lines, ""]


if __name__ == "__main__":
    for one in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as name:
            print("\n".join(figures(Path(one), Path(name))))
