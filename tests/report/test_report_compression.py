"""What the report says of a compression: what it was calibrated on."""

from __future__ import annotations

import json

from edgetune.core.compression_events import Calibrated
from edgetune.report.html import write_report
from edgetune.report.summary import write_summary

from .logs import Write, full_run


def test_what_it_was_calibrated_on_reaches_summary_and_page(write: Write) -> None:
    folder = write([*full_run()[:-1], Calibrated("notes.txt", 900, 2, 1024), full_run()[-1]])
    content = json.loads(write_summary(folder).read_text("utf-8"))
    assert content["calibration"] == {
        "source": "notes.txt", "tokens": 900, "sequences": 2, "widest": 1024,
    }  # fmt: skip
    page = write_report(folder).read_text("utf-8")
    assert "Calibration: 900 tokens in 2 sequences of notes.txt, fewer than the 1,024 inputs" in page
