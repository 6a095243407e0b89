"""Every command of docs/update.md works, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import edgetune
from edgetune.cli.app import execute

PAGE = Path(__file__).parents[2] / "docs" / "update.md"
LINES = "".join(
    re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
).splitlines()


@pytest.mark.slow
def test_the_commands_of_the_page_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("gguf", "xllamacpp", "peft", "cryptography"):
        pytest.importorskip(library)
    shutil.copytree(Path(edgetune.__file__).parent / "models" / "embedded", tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    done = 0
    for line in LINES:
        words = shlex.split(line)
        if words[0] != "edgetune":
            subprocess.run(words, check=True)
            continue
        assert execute(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        done += 1
    assert done >= 12
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "base.gguf").read_bytes()
    assert not (tmp_path / "model.gguf.edgetune").exists()
