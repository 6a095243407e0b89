"""Every command of docs/update.md works, in order, in an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from walking import walk

import edgetune


@pytest.mark.slow
def test_the_commands_of_the_page_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("gguf", "xllamacpp", "peft", "cryptography"):
        pytest.importorskip(library)
    shutil.copytree(Path(edgetune.__file__).parent / "models" / "embedded", tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    assert walk("update.md", capsys) >= 12
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "base.gguf").read_bytes()
    assert not (tmp_path / "model.gguf.edgetune").exists()
