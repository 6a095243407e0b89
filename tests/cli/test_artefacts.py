"""What the commands on files refuse before they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.cli.app import execute


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--port", "70000"], "no port 70000"),
        (["--port", "-1"], "no port -1"),
        (["--host", "0.0.0.0", "--no-api-key"], "without a key"),
        (["--api-key", "x", "--no-api-key"], "a key and no key"),
        (["--api-key", ""], "printable"),
        (["--host", "no.such.host.invalid"], "no interface"),
    ],
)
def test_a_server_that_would_listen_wrongly_is_refused(
    options: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["serve", str(tmp_path / "no such file"), *options]) == 2
    assert what in capsys.readouterr().err


def test_the_key_of_a_server_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGETUNE_API_KEY", "a\nb")
    assert execute(["serve", str(tmp_path / "no such file")]) == 2
    assert "printable" in capsys.readouterr().err
