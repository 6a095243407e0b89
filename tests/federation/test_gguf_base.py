"""A run on a GGUF file is the run on the folder it stands for: same bits, resumable, and its ledger opens again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import edgetune
from edgetune.cli.app import execute
from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.errors import DigestError
from edgetune.core.ledger import Ledger, read_ledger
from edgetune.core.quantised import Q8_0, PackedTensor
from edgetune.core.update import Projected
from edgetune.export.gguf_file import write_gguf
from edgetune.federation.residency import base_tensors
from edgetune.models.backbone import load_backbone
from edgetune.models.digest import tensor_digest
from edgetune.models.quiet import quiet

RUN = ["--devices", "4", "--participation", "0.5", "--set", "method.local_steps=2", "--quiet"]
RUN += ["--set", "data.records=80", "--set", "data.held_out=8", "--set", "data.calibration=8"]
RUN += ["--set", "evaluation.max_new_tokens=8", "--set", "evaluation.samples=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a file, its attention in Q8_0 blocks."""
    embedded = load_backbone("embedded")
    quantised = {
        name: round_to_nearest(weight, Q8_0, AbsMax(), name=name)
        for name, weight in embedded.model.named_parameters()
        if "self_attn" in name
    }
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    return write_gguf(path, embedded.model, embedded.tokenizer, quantised=quantised, float_type="F32")


def federated(model: Path | str, out: Path, rounds: int, *options: str) -> Ledger:
    command = ["federate", "fedkseed", "--model", str(model), "--out", str(out), "--rounds", str(rounds)]
    assert execute([*command, *RUN, *options]) == 0
    return read_ledger(out / "tuned.ledger")


def coefficients(ledger: Ledger) -> dict[int, float]:
    assert isinstance(ledger.update, Projected)
    return dict(zip(ledger.update.keys.tolist(), ledger.update.coefficients.tolist(), strict=True))


def test_a_run_on_a_file_has_the_bits_of_a_run_on_its_folder(base: Path, tmp_path: Path) -> None:
    loaded = load_backbone(base)
    with quiet():
        loaded.model.save_pretrained(tmp_path / "folder")
        loaded.tokenizer.save_pretrained(tmp_path / "folder")
    one = federated(base, tmp_path / "one", 2, "--set", "federation.workers=1")
    two = federated(base, tmp_path / "two", 2, "--set", "federation.workers=2")
    other = federated(tmp_path / "folder", tmp_path / "other", 2, "--set", "federation.workers=1")
    assert coefficients(one) == coefficients(two) == coefficients(other)
    assert one.weights_digest == two.weights_digest == other.weights_digest
    assert one.base_digest == loaded.digest != other.base_digest
    tuned = edgetune.load(base, tmp_path / "one" / "tuned.ledger")
    assert tensor_digest(tuned.named_parameters()) == one.weights_digest
    with pytest.raises(DigestError):
        edgetune.load(base, tmp_path / "other" / "tuned.ledger")


def test_a_run_on_a_file_goes_on_where_it_stopped(base: Path, tmp_path: Path) -> None:
    whole = federated(base, tmp_path / "whole", 2)
    federated(base, tmp_path / "parts", 1)
    assert coefficients(federated(base, tmp_path / "parts", 2)) == coefficients(whole)


@pytest.mark.parametrize("directions", ["hadamard", "rank_one_pool"])
def test_blocks_that_layers_compute_with_stay_blocks_where_weights_are_streamed(
    directions: str, base: Path, tmp_path: Path
) -> None:
    loaded = load_backbone(base)
    weights = base_tensors(loaded, None)
    for name, weight in loaded.model.named_parameters():
        stored = weights[name]
        assert isinstance(stored, PackedTensor) == ("self_attn" in name)
        values = stored.dequantise() if isinstance(stored, PackedTensor) else stored
        assert torch.equal(values, weight), name
    fused, streamed = (
        federated(base, tmp_path / name, 1, "--residency", name, "--set", f"method.directions={directions}")
        for name in ("fused", "streamed")
    )
    assert streamed.base_digest == fused.base_digest
    assert coefficients(streamed) == pytest.approx(coefficients(fused), rel=0.05, abs=1e-7)
    assert any(coefficients(fused).values())
    edgetune.load(base, tmp_path / "streamed" / "tuned.ledger")  # checks the recorded digest


def test_the_main_job_on_a_file_ends_in_a_file_of_its_kind(base: Path, tmp_path: Path) -> None:
    from edgetune.core.gguf_read import read_gguf
    from edgetune.report.summary import read_summary

    command = ["run", "--model", str(base), "--out", str(tmp_path / "run"), "--rounds", "1", *RUN]
    assert execute(command) == 0
    before, after = read_gguf(base), read_gguf(tmp_path / "run" / "model.gguf")
    for key in (
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.chat_template",
    ):
        assert after.metadata[key] == before.metadata[key], key
    assert after.array("tokenizer.ggml.tokens") == before.array("tokenizer.ggml.tokens")
    assert after.array("tokenizer.ggml.merges") == before.array("tokenizer.ggml.merges")
    stages = {stage.name: stage for stage in read_summary(tmp_path / "run").stages}
    assert math.isclose(stages["compressed"].loss, stages["llama.cpp"].loss, rel_tol=0.02)
