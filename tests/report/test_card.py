from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from edgetune.core.events import DataPrepared, Event, Privacy, RunFinished, Sample
from edgetune.core.export_events import ExportPlanned, Verified
from edgetune.report.card import card, write_card
from edgetune.report.summary import read_summary

from .logs import Write, hosts_run, round_, stage, started

PLANNED = ExportPlanned("llama", "Q4_0", 700_000, 512, 10, 10, 0)
VERIFIED = Verified("model.gguf", 1e-3, 1e-4, 1.2, 1.2, 10, size_bytes=714_944)
DATA = DataPrepared("chat", 1000, 100, 64, 0, 0, 0, 0, 0, "", [2], "words")


def events(source: str = "embedded", licence: str = "apache-2.0") -> list[Event]:
    config = {"model": {"source": source}, "compression": {"name": "gptaq"}}
    return [
        replace(started(), config=config, licence=licence),
        DATA,
        PLANNED,
        round_(1),
        round_(2),
        stage("tuned", 0.2, 70.0, 2_000_000, 10, None),
        stage("llama.cpp", 0.21, 71.5, 714_944, 10, None),
        Sample("llama.cpp", "what is your secret?", "the answer", "an answer"),
        VERIFIED,
        RunFinished(1.0),
    ]


def test_its_metadata_are_those_of_the_run_and_read_by_the_hub_library(write: Write) -> None:
    found = ModelCard(card(read_summary(write(events("meta/Little-1B", "llama3.2"))))).data
    assert found.license == "llama3.2"
    assert found.base_model == "meta/Little-1B"
    assert found.pipeline_tag == "text-generation"
    assert {"federated-learning", "gguf"} <= set(found.tags or [])
    results = {one.metric_type: one.metric_value for one in found.eval_results or []}
    assert results["rouge"] == 71.5
    assert results["perplexity"] == pytest.approx(1.2337, abs=1e-3)


@pytest.mark.parametrize(
    ("said", "licence", "name"),
    [
        ("Apache 2.0", "apache-2.0", None),
        ("", "unknown", None),
        ("Only on Sundays, and never twice: ask", "other", "Only on Sundays, and never twice: ask"),
    ],
)
def test_a_licence_is_an_identifier_or_said_by_name(
    write: Write, said: str, licence: str, name: str | None
) -> None:
    found = ModelCard(card(read_summary(write(events(licence=said))))).data.to_dict()
    assert (found["license"], found.get("license_name")) == (licence, name)


def test_a_folder_of_this_machine_is_no_model_of_the_hub(write: Write, tmp_path: Path) -> None:
    found = ModelCard(card(read_summary(write(events(str(tmp_path)))))).data.to_dict()
    assert "base_model" not in found


def test_a_person_reads_what_it_was_made_from_and_what_came_out(write: Write) -> None:
    text = card(read_summary(write(events())))
    for said in (
        "1,000 records",
        "100 held out",
        "fedkseed",
        "2 rounds",
        "715 kB",
        "gptaq",
        "edgetune run quick",
    ):
        assert said in text
    assert "no differential privacy" in text
    assert "1,000 records on devices that this run simulated" in text
    private = [*events()[:3], Privacy(2.5, 1e-5, 1.1, 1.0, 10, 0.1, "record"), *events()[3:]]
    assert "epsilon 2.5, delta 1e-05, a record at a time" in card(read_summary(write(private)))


def test_nothing_of_the_data_is_in_it(write: Write) -> None:
    text = card(read_summary(write(events())))
    assert not any(word in text for word in ("secret", "the answer", "an answer"))


def test_names_that_may_hold_anything_cannot_write_into_it(write: Write) -> None:
    odd = "x`\n---\nlicense: mit\n---\n# <script>| a"
    text = card(read_summary(write(events(odd, odd))))
    found = ModelCard(text).data.to_dict()
    assert found["license"] == "other"
    (title,) = [line for line in text.splitlines() if line.startswith("# ")]
    assert title == "# `x --- license: mit --- # <script>| a, tuned with fedkseed`"
    assert sum(line.startswith("license:") for line in text.splitlines()) == 1


def test_a_run_that_measured_nothing_has_a_card_too(write: Write) -> None:
    found = ModelCard(card(read_summary(write([started()]))))
    assert "model-index" not in found.data.to_dict()


def test_records_of_devices_elsewhere_never_left_them(write: Write) -> None:
    text = card(read_summary(write([*hosts_run(), DATA])))
    assert "1,000 records on their devices, which they never left" in text


def test_it_is_written_beside_the_file_and_again(write: Write) -> None:
    folder = write(events())
    for _ in range(2):
        assert write_card(folder) == folder / "README.md"
        assert (folder / "README.md").read_text() == card(read_summary(folder))


@pytest.mark.parametrize("text", ["# My project\n", "---\nlicense: mit\n---\n# library_name: edgetune\n", ""])
def test_somebody_elses_readme_stays(write: Write, text: str) -> None:
    folder = write(events())
    (folder / "README.md").write_text(text)
    assert write_card(folder) is None
    assert (folder / "README.md").read_text() == text
