"""What is said of a run's records, on the page, in the summary and on the terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from edgetune.cli.display import Display
from edgetune.core.events import DataPrepared
from edgetune.core.export_events import ExportPlanned, ExportRefused
from edgetune.report.html import write_report
from edgetune.report.notes import data_notes, export_notes
from edgetune.report.summary import read_summary, to_json
from edgetune.report.table import print_result

from .logs import Write, full_run


def found(**changes: object) -> DataPrepared:
    plain: dict[str, object] = {
        "prompt": "chat", "trained": 900, "held_out": 100, "calibration": 64, "copies": 0, "quoted": 0, "framed": 0,
        "own_ends": 0, "unknown": 0, "characters": "", "ends": [2], "words": "words",
    }  # fmt: skip
    return DataPrepared(**{**plain, **changes})  # type: ignore[arg-type]


def test_plain_data_need_no_word() -> None:
    assert data_notes(found()) == []


def test_each_finding_is_one_sentence_with_its_count() -> None:
    notes = data_notes(
        found(copies=1200, quoted=1, framed=2, own_ends=3, unknown=4, characters="[é]", ends=[])
    )
    assert [note.split(" ")[0] for note in notes] == ["1,200", "1", "2", "3", "4", "no"]
    assert "duplicates" in notes[0]
    assert notes[1].startswith("1 record with the text of a control token")
    assert notes[4].endswith("[é]")
    assert "evaluation.max_new_tokens" in notes[5]


def test_findings_and_words_reach_page_summary_and_terminal(write: Write) -> None:
    event = found(copies=7, words="words, and characters of scripts without spaces")
    folder = write([*full_run()[:1], event, *full_run()[1:]])
    assert to_json(read_summary(folder))["data"]["copies"] == 7
    page = write_report(folder).read_text(encoding="utf-8")
    table, live = (Console(file=StringIO(), width=200) for _ in range(2))
    print_result(table, read_summary(folder))
    Display(live).listen(event)
    assert "Rouge-L counts words, and characters of scripts without spaces" in page
    assert "Rouge-L counts words, and characters" in table.file.getvalue()  # type: ignore[attr-defined]
    for text in (page, live.file.getvalue()):  # type: ignore[attr-defined]
        assert "7 duplicates are left out" in text


def test_findings_are_text_and_not_markup() -> None:
    console = Console(file=StringIO(), width=200)
    Display(console).listen(found(unknown=1, characters="[/b]"))
    assert "[/b]" in console.file.getvalue()  # type: ignore[attr-defined]


def planned(**changes: object) -> ExportPlanned:
    plain: dict[str, object] = {
        "architecture": "llama", "file_type": "Q4_0", "size_bytes": 2_500_000, "context": 512, "texts": 200,
        "texts_in_all": 200, "composed": 0, "notes": [],
    }  # fmt: skip
    return ExportPlanned(**{**plain, **changes})  # type: ignore[arg-type]


def test_what_the_file_will_be_is_said_before_the_run() -> None:
    (only,) = export_notes(planned())
    assert (
        only == "file: llama, Q4_0, 2.5 MB and the vocabulary; llama.cpp makes the same tokens of 200 texts"
    )
    notes = export_notes(planned(texts_in_all=30_000, composed=7, notes=["add_bos_token is false"]))
    assert "200 of 30,000 texts" in notes[0]
    assert notes[1].startswith("7 texts have decomposed characters")
    assert notes[2] == "file: add_bos_token is false"


def test_the_plan_and_a_refusal_are_shown(write: Write) -> None:
    folder = write([*full_run()[:-1], planned(notes=["[b]a note[/b]"]), full_run()[-1]])
    assert "[b]a note[/b]" in write_report(folder).read_text(encoding="utf-8")
    assert to_json(read_summary(folder))["planned"]["context"] == 512
    shown = StringIO()
    display = Display(Console(file=shown, width=200), quiet=False)
    display.listen(planned(notes=["[b]a note[/b]"]))
    display.listen(ExportRefused("config.json: [/b] no such family"))
    assert "file: [b]a note[/b]" in shown.getvalue()
    assert (
        "warning: the ledger cannot become a GGUF file: config.json: [/b] no such family" in shown.getvalue()
    )
