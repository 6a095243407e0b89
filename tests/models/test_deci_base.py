"""A file whose layers differ is a base like any other: it is tuned across devices, and its ledger is applied to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgetune.cli.app import execute
from edgetune.core.ledger import read_ledger
from edgetune.models.backbone import load_backbone

FEW = ["--threads", "1", "--set", "data.held_out=12", "--set", "evaluation.max_new_tokens=8"]


def test_a_pruned_file_is_federated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file, run = tmp_path / "p", tmp_path / "m.gguf", tmp_path / "run"
    assert execute(["prune", "embedded", "--width", "per_layer", "--out", str(out), *FEW]) == 0
    assert execute(["export", str(out), "--out", str(file), *FEW]) == 0
    folder, base = load_backbone(out), load_backbone(file)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(folder.model(ids).logits, base.model(ids).logits)  # both in fp16
    command = ["federate", "fedkseed", "--model", str(file), "--rounds", "1", "--lr", "1e-6", *FEW]
    command += ["--set", "method.local_steps=2", "--set", "model.residency=streamed"]
    assert execute([*command, "--out", str(run)]) == 0
    ledger = read_ledger(run / "tuned.ledger")
    assert ledger.base_digest == base.digest != folder.digest
    tuned = tmp_path / "tuned.gguf"
    command = [
        "compress",
        str(file),
        "--ledger",
        str(run / "tuned.ledger"),
        "--method",
        "rtn",
        "--out",
        str(tuned),
    ]
    assert execute(command) == 0
    assert "perplexity" in capsys.readouterr().out
    assert load_backbone(tuned).model.config.layer_widths == base.model.config.layer_widths
