"""What the page on Python shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgetune
from edgetune.cli.app import execute
from edgetune.core.ledger import read_ledger

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_blocks_of_the_page_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks("python"), start=1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(blocks("python")) == 4
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    assert read_ledger(tmp_path / "mine.ledger").digest == names["ledger"].digest
    assert read_ledger(tmp_path / "out" / "tuned.ledger").digest == names["result"].ledger.digest
    assert shown[-1].startswith("clipped_mezo ")
    assert execute(["methods", "my_method.py"]) == 0
    assert "MeZO with slopes cut off at 1." in capsys.readouterr().out


def test_the_commands_of_the_page_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        program, command, *options = line.split()
        assert program == "edgetune"
        assert execute([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in options if option.startswith("-"))


def test_everything_public_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in set(edgetune.__all__) - {"__version__"}:
        assert re.search(rf"\b{name}\b", page)
        assert getattr(edgetune, name).__doc__
    assert dir(edgetune) == sorted(edgetune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        edgetune.nothing  # noqa: B018


@pytest.mark.parametrize("first", ["from edgetune import run", "from edgetune.run import pipeline"])
def test_run_is_the_function_whatever_was_imported_first(first: str) -> None:
    script = f"import edgetune\n{first}\nassert callable(edgetune.run)\nfrom edgetune import run\nassert callable(run)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, edgetune; dir(edgetune); "
        "sys.exit(str({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)).replace('set()', '') or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
