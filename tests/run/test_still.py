"""Runs in which nothing moved end with the reason, and with what to try."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.cli.app import execute

SMALL = [
    "--rounds", "2", "--set", "method.local_steps=2", "--set", "data.records=100", "--set", "data.held_out=6",
    "--set", "evaluation.max_new_tokens=2", "--set", "evaluation.samples=0", "-q",
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "said", "tried", "options"),
    [
        ("fedkseed", "no round had the replies", "over_selection", ["fleet.deadline=1e-6"]),
        ("fwdllm", "took no step", "variance_threshold", ["method.variance_threshold=1e-12"]),
    ],
)
def test_a_run_that_learnt_nothing_says_why(
    method: str, said: str, tried: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for option in options for part in ("--set", option)]
    assert execute(["federate", method, *SMALL, *settings, "--out", str(tmp_path / "a")]) == 9
    err = " ".join(capsys.readouterr().err.split())
    assert said in err
    assert tried in err
