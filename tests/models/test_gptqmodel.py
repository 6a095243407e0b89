"""GPTQModel, which checkpoints of GPTQ come from: what it wrote is read, and it reads what is written here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gptqmodel_writer import CASES, IDS, plain
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgetune.core.fitting import fitting
from edgetune.core.gptq import zero_points
from edgetune.core.integers import INTEGERS
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.folders import FOLDER_FORMATS, folder_tensors, hold_in
from edgetune.models.backbone import load_backbone
from edgetune.models.packed import PackedWeights
from edgetune.models.packing import packing_in

HERE = Path(__file__).parent
KEPT = HERE / "gptq-folders"  # no name of a library: pytest puts this folder on the path
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is None, reason="GPTQModel is not installed (pip install gptqmodel)"
)


def run_library(verb: str, place: Path) -> None:
    """Run the library in a process of its own: it changes settings of torch and of the tokenizers."""
    more = {"GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "gptqmodel_writer.py"), verb, str(place)],
        cwd=place, env=os.environ | more, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def read(folder: Path) -> PackedWeights:
    packing = packing_in(folder)
    assert packing is not None
    return PackedWeights([folder / "model.safetensors"], packing)


def digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_the_library_wrote_means_what_it_computes_with(case: str) -> None:
    weights, meant = read(KEPT / case), json.loads((KEPT / case / "weights.json").read_text())
    assert set(weights.layers) == set(meant)
    assert {name: digest(weights[name]) for name in meant} == meant


def test_zero_points_of_zero_are_among_the_kept_ones() -> None:
    """They are what `gptq` and a field by field reading differ in; without them these files would show nothing."""
    borrowed = 0
    for name, values in load_file(KEPT / "sorted-2-bits" / "model.safetensors").items():
        if name.endswith("qzeros"):
            borrowed += int((zero_points(values, 2, values.shape[1] * 16, 1) == 0).sum())
    assert borrowed > 0


@needs_library
@pytest.mark.slow
def test_what_the_installed_library_writes_is_read_exactly(tmp_path: Path) -> None:
    run_library("write", tmp_path)
    for case in CASES:
        run_library("read", tmp_path / case)
        theirs = load_file(tmp_path / case / "read.safetensors")
        logits = theirs.pop("logits")
        model: Any = load_backbone(tmp_path / case).model
        ours = dict(model.named_parameters())
        for name, weight in theirs.items():
            assert torch.equal(ours[name].detach(), weight), f"{case}: {name}"
        with torch.no_grad():
            assert float((model(IDS).logits - logits).abs().max()) < 1e-5, case


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("grid", ["int2-g32", "int3-g32", "int4-g32", "int4-row", "int8-g32"])
def test_the_library_computes_with_the_weights_that_are_written_here(grid: str, tmp_path: Path) -> None:
    plain(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    quantised, luck = {}, torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            chosen = fitting(INTEGERS[grid], weight.shape[1])
            assert chosen is not None
            groups = weight.shape[1] // (chosen.group or weight.shape[1])
            codes = torch.randint(chosen.low, chosen.high + 1, weight.shape, generator=luck).to(torch.int8)
            scales = (torch.rand(weight.shape[0], groups, generator=luck) * 0.02 + 1e-3).half()
            quantised[name] = QuantisedMatrix(chosen, codes, (scales,))
            weight.data = quantised[name].dequantise()
    hold_in(model, quantised, torch.float16)
    kind = FOLDER_FORMATS["gptq"]
    save_file(
        folder_tensors(kind, model, quantised, torch.float16),
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((tmp_path / "config.json").read_text())
    said = kind.says({name: matrix.grid for name, matrix in quantised.items()}, [])
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": said, "dtype": "float16"})
    )
    run_library("read", tmp_path)
    theirs = load_file(tmp_path / "read.safetensors")
    for name, matrix in quantised.items():
        assert torch.equal(theirs[name], matrix.dequantise()), name
    with torch.no_grad():
        assert float((model(IDS).logits - theirs["logits"]).abs().max()) < 1e-5
