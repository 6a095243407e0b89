"""`edgetune prune` from one end to the other: the folder is a base like any other, figures are those of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from edgetune.cli.app import execute
from edgetune.models.backbone import load_backbone
from edgetune.models.licence import licence_of

FEW = ["--threads", "1", "--set", "data.records=120", "--set", "data.held_out=12"]
FEW += ["--set", "evaluation.max_new_tokens=8"]


def _rows(text: str) -> dict[str, list[str]]:
    found = [line.split() for line in text.splitlines()]
    names = ("dense", "pruned", "compensated", "recovered")
    return {row[0]: row[1:] for row in found if row and row[0] in names}


def test_a_pruned_model_is_an_ordinary_folder_with_the_printed_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    command = ["prune", "embedded", "--ratio", "0.4", "--recover", "lora", "--steps", "2", "--out", str(out)]
    assert execute([*command, *FEW]) == 0
    rows = _rows(capsys.readouterr().out)
    assert list(rows) == ["dense", "pruned", "compensated", "recovered"]
    assert float(rows["compensated"][-1]) < float(rows["pruned"][-1])
    assert json.loads((out / "config.json").read_text())["intermediate_size"] < 512
    model = AutoModelForCausalLM.from_pretrained(out)
    weights = int(rows["recovered"][0].replace(",", ""))
    assert sum(one.numel() for one in model.parameters()) == weights
    assert execute(["evaluate", str(out), *FEW]) == 0
    assert f"loss {rows['recovered'][1]}"[:-1] in capsys.readouterr().out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["p"]
    text = (out / "README.md").read_text()
    assert f"| recovered | {weights:,} |" in text
    assert licence_of(out) == "apache-2.0"


def test_the_pruned_base_of_a_run_has_a_card_of_its_own(tmp_path: Path) -> None:
    stages = [
        "--set",
        "stages=['prune']",
        "--set",
        "pruning.width=modules",
        "--set",
        "pruning.compensate=false",
    ]
    assert execute(["run", "--out", str(tmp_path / "r"), *stages, *FEW, "--quiet"]) == 0
    folder = tmp_path / "r" / "pruned"
    assert "width `modules`" in (folder / "README.md").read_text()
    assert licence_of(folder) == "apache-2.0"
    assert not (tmp_path / "r" / "README.md").exists(), "no model file, no card of one"


def test_layers_of_different_widths_are_tuned_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "p", tmp_path / "run"
    command = ["prune", "embedded", "--width", "per_layer", "--spare", "1", "1", "--importance", "magnitude"]
    assert execute([*command, "--no-compensate", "--out", str(out), *FEW]) == 0
    assert list(_rows(capsys.readouterr().out)) == ["dense", "pruned"]
    widths = json.loads((out / "widths.json").read_text())["layer_widths"]["feed_forward"]
    assert (widths[0], widths[3]) == (512, 512)
    assert min(widths) < 512
    tune = ["tune", "mezo", "--model", str(out), "--rounds", "1", "--lr", "1e-6", "--out", str(run), *FEW]
    assert execute([*tune, "--set", "method.local_steps=2"]) == 0
    (ledger,) = run.glob("*.ledger")
    file = tmp_path / "m.gguf"
    assert execute(["export", str(out), "--ledger", str(ledger), "--out", str(file)]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_calibration_is_the_text_that_compress_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, weights = tmp_path / "a.txt", []
    for words in ("Report: the pumps are on. Over. ", "You could warn the crews of wind at night. "):
        text.write_text(words * 400)
        out = tmp_path / f"p{len(weights)}"
        command = [
            "prune",
            "embedded",
            "--calibration",
            str(text),
            "--calibration-tokens",
            "600",
            "--out",
            str(out),
        ]
        assert execute([*command, *FEW]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "a.txt" in said.replace(" ", "")
        assert "tokens in" in said
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_whole_sub_modules_go_where_they_are_small_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    command = ["prune", "embedded", "--width", "modules", "--out", str(out), *FEW]
    assert execute([*command, "--ratio", "0.01"]) == 4
    assert "a larger --ratio" in capsys.readouterr().err
    assert execute([*command, "--ratio", "0.06"]) == 0
    assert load_backbone(out).model.config.layer_widths["heads"].count(0) == 1


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (["--importance", "best"], 2, "must be one of activation, first"),
        (["--width", "wide"], 2, "must be one of uniform, per_layer, modules"),
        (["--recover", "al"], 2, "must be one of none, distil, lora"),
        (["--ratio", "1.5"], 2, "less than 1"),
        (["--spare", "1", "1"], 2, "--width per_layer"),
        (["--spare", "2", "2", "--width", "per_layer"], 2, "cannot be left alone"),
        (["--recover", "lora", "--lr", "-1"], 2, "greater than 0"),
        (["--width", "modules", "--ratio", "0.001"], 4, "a larger --ratio"),
        (["--calibration", "no such.txt"], 3, "no such"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_folder(
    options: list[str], code: int, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["prune", "embedded", *options, "--out", str(tmp_path / "p"), *FEW]) == code
    assert what in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
