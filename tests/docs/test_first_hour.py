"""Every command of docs/first-hour.md works, in order, in an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from walking import walk

import edgetune


def test_the_commands_of_the_first_hour_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = Path(edgetune.__file__).parent / "models" / "embedded"
    shutil.copytree(embedded, tmp_path / "my-model")  # a model that is not the packaged one, by its name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    assert walk("first-hour.md", capsys) >= 10
    assert {path.name for path in (tmp_path / "all").iterdir()} >= {
        "model.gguf",
        "report.html",
        "tuned.ledger",
    }
    assert (tmp_path / "mine.gguf").is_file()
