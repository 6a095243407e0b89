"""Every command of docs/first-hour.md works, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import edgetune
from edgetune.cli.app import execute

PAGE = Path(__file__).parents[2] / "docs" / "first-hour.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_commands_of_the_first_hour_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = Path(edgetune.__file__).parent / "models" / "embedded"
    shutil.copytree(embedded, tmp_path / "my-model")  # a model that is not the packaged one, by its name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    assert len(BLOCKS) >= 6
    done = 0
    for block in BLOCKS:
        lines = block.splitlines()
        while lines:
            line = lines.pop(0)
            if line.startswith("cat >"):
                text = [line]
                while text[-1] != "END":
                    text.append(lines.pop(0))
                subprocess.run(["bash", "-ec", "\n".join(text)], check=True)
                continue
            words = shlex.split(line)
            assert words[0] == "edgetune"
            assert execute(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
            done += 1
    assert done >= 10
    assert {path.name for path in (tmp_path / "all").iterdir()} >= {
        "model.gguf",
        "report.html",
        "tuned.ledger",
    }
    assert (tmp_path / "mine.gguf").is_file()
