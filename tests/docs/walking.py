"""Do what a page of the documentation says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from edgetune.cli.app import execute

DOCS = Path(__file__).parents[2] / "docs"


def walk(name: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Do the shell commands of a page in order, edgetune's in this process; returns how many of these there were."""
    page = (DOCS / name).read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", page, flags=re.M | re.S)).splitlines()
    done = 0
    while lines:
        line = lines.pop(0)
        if line.startswith("cat >"):
            text = [line]
            while text[-1] != "END":
                text.append(lines.pop(0))
            subprocess.run(["bash", "-ec", "\n".join(text)], check=True)
        elif line.startswith("edgetune "):
            assert execute(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
            done += 1
        else:
            subprocess.run(shlex.split(line), check=True)
    return done
