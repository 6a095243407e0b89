"""Cards of model folders: what a command did, the base's licence handed on, somebody else's README left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from edgetune.core.compression_events import Pruned
from edgetune.models.licence import licence_of
from edgetune.report.folder_card import Made, folder_card, pruned_in, write_folder_card
from edgetune.report.grids import Grid
from edgetune.report.summary import read_summary

from .logs import Write, started

MADE = Made(
    "pruned", "meta/Little-1B", 1_000_000, "ab" * 32, "llama3.2", "edgetune prune meta/Little-1B", {"edgetune": "0.1"},
    facts=["Pruned: by half"], quality=Grid(("Step", "Loss"), (("dense", "1.0"), ("pruned", "1.1"))),
    results={"perplexity": 3.00417},
)  # fmt: skip
PRUNED = Pruned(
    0.2, "uniform", "first", "lora", 1000, 800, {"pruned": 0.5}, {"dense": 1.0, "pruned": 1.5}, 1.0
)


def test_a_hub_library_reads_it_and_a_person_does() -> None:
    found = ModelCard(folder_card(MADE))
    assert (found.data.license, found.data.base_model) == ("llama3.2", "meta/Little-1B")
    assert found.data.model_name == "Little-1B, pruned"
    assert [(one.metric_type, one.metric_value) for one in found.data.eval_results or []] == [
        ("perplexity", 3.0042)
    ]
    for said in (
        "1,000,000 weights",
        "ab" * 32,
        "Pruned: by half",
        "| pruned | 1.1 |",
        "edgetune prune meta/Little-1B",
    ):
        assert said in found.text


def test_the_card_of_an_adapter_names_its_base_and_the_library_that_puts_it_on() -> None:
    found = ModelCard(folder_card(replace(MADE, library="peft", tags=("edgetune", "lora")))).data
    assert (found.library_name, found.base_model, found.tags) == (
        "peft",
        "meta/Little-1B",
        ["edgetune", "lora"],
    )


@pytest.mark.parametrize("licence", ["apache-2.0", "", "Only on Sundays: ask", "llama3.2"])
def test_the_licence_goes_on_to_what_is_made_of_the_folder(tmp_path: Path, licence: str) -> None:
    assert write_folder_card(tmp_path, replace(MADE, licence=licence)) == tmp_path / "README.md"
    assert licence_of(tmp_path) == licence


@pytest.mark.parametrize("text", ["# My project\n", "---\nlicense: mit\n---\n# library_name: edgetune\n", ""])
def test_a_strangers_readme_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    assert write_folder_card(tmp_path, MADE) is None
    assert path.read_text() == text
    path.unlink()
    for how in ("pruned", "compressed"):  # an older card of ours does not
        assert write_folder_card(tmp_path, replace(MADE, how=how)) == path
        assert f"Little-1B, {how}" in path.read_text()


def test_names_that_may_hold_anything_write_no_metadata() -> None:
    odd = "x`\n---\nlicense: mit\n---\n# <script>"
    text = folder_card(replace(MADE, base=odd, licence=odd, command=odd))
    assert (
        sum(line.startswith("license:") for line in text.splitlines()[: text.splitlines().index("---", 1)])
        == 1
    )
    assert ModelCard(text).data.to_dict()["license"] == "other"
    assert next(line for line in text.splitlines() if line.startswith("# ")).startswith("# `x")


def test_a_runs_pruned_folder_says_what_was_taken_out(write: Write) -> None:
    start = replace(started(), config={"model": {"source": "embedded"}}, licence="mit")
    assert pruned_in(read_summary(write([start]))) is None
    made = pruned_in(read_summary(write([start, PRUNED])))
    assert made is not None
    text = folder_card(made)
    assert (
        "800 weights stay (20.0% removed), ratio 0.2, width `uniform`, importance `first`, recovered by `lora`"
        in text
    )
    assert f"digest `{start.base_digest}`" in text
    assert "| pruned | 1.500 |" in text
    own = pruned_in(read_summary(write([start, replace(PRUNED, base_digest="f" * 64)])))
    assert own is not None
    assert not own.base_digest, "the run names the pruned base, whose digest is not the dense one's"
