"""What a ledger does to a deployed file, in figures: nearness to the tuned model, and an update over loopback.

    python scripts/update_figures.py out/fed/tuned.ledger [out/lora/tuned.ledger ...]

Each ledger lies in the folder of its run, which names model and data. For every run the script exports the untouched
base in F16, Q8_0 and Q4_0, applies the ledger in every way, and compares predictions with those of the tuned model on
the run's held-out records. Then it serves a signed update of the first ledger from 127.0.0.1, takes it, asks llama.cpp
the same questions before and after, offers tampered, stale and foreign updates, and rolls back. It prints Markdown.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.errors import EdgetuneError, ModelError
from edgetune.core.ledger import read_ledger, write_ledger
from edgetune.core.quantised import GRIDS
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.tensors import FloatType
from edgetune.federation.load import load
from edgetune.installed.adapter import write_peft_adapter
from edgetune.installed.fetching import Source
from edgetune.installed.gguf import GgufBase
from edgetune.installed.install import rollback, update
from edgetune.installed.making import make, sign_file, write_copy
from edgetune.installed.manifest import touched_named
from edgetune.installed.parts import parts_of
from edgetune.installed.signing import new_key, public_key
from edgetune.models.backbone import load_backbone
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.quality import reference_of
from edgetune.recipe.recipe import recipe_of_run

KINDS, WAYS = ("F16", "Q8_0", "Q4_0"), ("own", "Q8_0", "F16")
QUESTIONS, ANSWER = 3, 48
"""Held-out prompts that llama.cpp is asked, and tokens of its answers."""


def export(model: PreTrainedModel, prepared: Prepared, kind: str, path: Path) -> Path:
    """Write a model with its projections rounded to a grid; the rest in F16, or all in F32."""
    quantised = {
        name: round_to_nearest(weight.detach(), GRIDS[kind], AbsMax(), name=name)
        for name, weight in model.named_parameters()
        if kind in GRIDS and "proj" in name and weight.shape[1] % GRIDS[kind].block == 0
    }
    said = {"base_digest": prepared.backbone.digest, "ledger_digest": ""}
    words = prepared.backbone.tokenizer
    floats: FloatType = "F32" if kind == "F32" else "F16"
    return write_gguf(path, model, words, quantised=quantised, float_type=floats, metadata=said)


def nearness(ledger: Path, work: Path) -> list[str]:
    """Return the rows of one run's table."""
    prepared = prepare(recipe_of_run(ledger.parent), split=False)
    source, read = prepared.backbone.folder, read_ledger(ledger)
    tuned = load(source, ledger)
    before = reference_of(tuned, prepared)
    title = f"{prepared.backbone.source if 'embedded' in prepared.backbone.source else source.name}, {read.method}"

    def row(name: str, size: int, model: nn.Module) -> str:
        far = before.of(model)
        return f"| {title} | {name} | {size:,} | {far.every:.2e} | {100 * far.top_1:.2f} % |"

    rows = [row("no ledger", 0, load_backbone(source).model)]
    for kind in KINDS:
        base = export(load_backbone(source).model, prepared, kind, work / f"{kind}.gguf")
        rows.append(row(f"{kind}, no ledger", base.stat().st_size, load_backbone(base).model))
        for way in WAYS if kind in GRIDS else WAYS[:1]:
            out = work / "out.gguf"
            write_copy(GgufBase(base, touched_named(way)), [ledger], out)
            rows.append(
                row(f"{kind}, ledger, changed matrices {way}", out.stat().st_size, load_backbone(out).model)
            )
        try:
            opened = GgufBase(base)
            write_peft_adapter(work / "adapter", parts_of(read, opened), opened, read)
            import peft

            placed = peft.PeftModel.from_pretrained(load_backbone(base).model, str(work / "adapter"))
            size = (work / "adapter" / "adapter_model.safetensors").stat().st_size
            rows.append(row(f"{kind} and an adapter", base.stat().st_size + size, placed))
        except ModelError:
            pass  # no LoRA's ledger
        finally:
            shutil.rmtree(work / "adapter", ignore_errors=True)
        if kind in GRIDS:
            fresh = export(load(source, ledger), prepared, kind, work / "fresh.gguf")
            rows.append(
                row(f"tuned model rounded to {kind}", fresh.stat().st_size, load_backbone(fresh).model)
            )
    return rows


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder from 127.0.0.1; yields the address of its manifest."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/update.json"
        finally:
            server.shutdown()
            thread.join()


def answers(file: Path, prepared: Prepared, adapters: Sequence[Path] = ()) -> list[str]:
    """Return what llama.cpp answers to the first held-out prompts."""
    found = []
    with LlamaCpp(file, context=512, adapters=adapters) as engine:
        for example in prepared.held_out_examples[:QUESTIONS]:
            found.append(engine.generate(example.input_ids[: example.response_start], ANSWER).strip())
    return found


def state(folder: Path) -> dict[str, str]:
    """Return every file of a folder by its digest."""
    return {
        str(one.relative_to(folder)): sha256(one.read_bytes()).hexdigest()
        for one in sorted(folder.rglob("*"))
        if one.is_file()
    }


def refusals(base: Path, desk: Path, key: Path) -> dict[str, Callable[[], None]]:
    """Return what is offered and must be refused, each from the desk as the last offer left it."""
    manifest, ledger = desk / "update.json", desk / "tuned.ledger"
    first = manifest.read_bytes()

    def tampered() -> None:
        said = json.loads(first)
        manifest.write_text(json.dumps(said | {"serial": said["serial"] + 1}))

    def damaged() -> None:
        read = read_ledger(ledger)
        write_ledger(desk / "more.ledger", replace(read, round=read.round + 1))
        make(base, [desk / "more.ledger"], manifest, key=key, serial=2)
        data = bytearray((desk / "more.ledger").read_bytes())
        data[-1] ^= 1
        (desk / "more.ledger").write_bytes(data)

    def stale() -> None:
        read = read_ledger(ledger)
        write_ledger(desk / "old.ledger", replace(read, round=read.round - 1))
        make(base, [desk / "old.ledger"], manifest, key=key, serial=3)

    def foreign() -> None:
        said = json.loads(first)
        manifest.write_text(json.dumps(said | {"base": said["result"], "serial": 4}))
        sign_file(manifest, key)

    def strangers() -> None:
        new_key(desk / "stranger")
        manifest.write_bytes(first)
        sign_file(manifest, desk / "stranger")

    return {
        "a manifest changed after it was signed": tampered,
        "a ledger changed after it was signed": damaged,
        "an older round of the installed run": stale,
        "an update of another base": foreign,
        "an update signed by a stranger": strangers,
    }


def loopback(ledger: Path, work: Path) -> list[str]:
    """Return what an update over loopback came to, as lines."""
    prepared = prepare(recipe_of_run(ledger.parent), split=False)
    device, desk = work / "device", work / "desk"
    for folder in (device, desk):
        folder.mkdir()
    base = export(prepared.backbone.model, prepared, "Q8_0", work / "base.gguf")
    file = Path(shutil.copyfile(base, device / "model.gguf"))
    key, trusted = work / "key", public_key(new_key(work / "key"))
    Path(shutil.copyfile(ledger, desk / "tuned.ledger"))
    make(base, [desk / "tuned.ledger"], desk / "update.json", key=key)
    untouched, before = state(device), answers(file, prepared)
    with served(desk) as address:
        start = time.perf_counter()
        done = update(file, Source(address), trusted=trusted)
        took = time.perf_counter() - start
        after = answers(file, prepared)
        lines = [
            f"- installed file: {base.stat().st_size:,} bytes; fetched: {done.fetched:,} bytes; {took:.2f} s until "
            "the new file was in place (fetched, checked, applied, on disk)"
        ]
        offers = refusals(base, desk, key)
        for name, offer in offers.items():
            offer()
            present = state(device)
            try:
                update(file, Source(address), trusted=trusted)
                lines.append(f"- {name}: TAKEN")
            except EdgetuneError as error:
                same = "nothing changed" if state(device) == present else "SOMETHING CHANGED"
                lines.append(f"- {name}: exit code {error.exit_code}, {same}: {error.what}")
    rollback(file)
    lines.append(f"- rolled back: {'identical bytes' if state(device) == untouched else 'OTHER BYTES'}")
    lines += ["", "| question | base | updated |", "|---|---|---|"]
    for example, old, new in zip(prepared.held_out, before, after, strict=False):
        asked = " ".join(str(example.instruction).split())[:80]
        lines.append(f"| {asked} | {' '.join(old.split())[:90]} | {' '.join(new.split())[:90]} |")
    return lines


if __name__ == "__main__":
    ledgers = [Path(one) for one in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as name:
        print("| run | file | bytes | KL to the tuned model | same first choice |\n|---|---|---|---|---|")
        for one in ledgers:
            print("\n".join(nearness(one, Path(name))))
    with tempfile.TemporaryDirectory() as name:
        print("\n" + "\n".join(loopback(ledgers[0], Path(name))))
