"""What a person sees while commands work and when they end: words whole, something moving, no litter."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import edgetune
from edgetune.cli import info, stages
from edgetune.cli.app import app, execute
from edgetune.cli.display import Display
from edgetune.cli.layout import fields, paragraph
from edgetune.cli.options import RECIPE_OPTIONS
from edgetune.methods.cards import cards
from edgetune.methods.catalogue import tuning_names
from edgetune.recipe.method_section import AUTO
from edgetune.recipe.open_settings import packaged_recipe
from edgetune.recipe.recipe import describe_settings, load_recipe

COMMANDS = sorted(str(group.callback.__name__) for group in app.registered_commands)  # type: ignore[union-attr]
SMALL = [
    "--rounds", "1", "--set", "data.records=60", "--set", "data.held_out=4", "--set", "data.calibration=4",
    "--set", "data.max_tokens=64", "--set", "method.local_steps=1", "--set", "evaluation.max_new_tokens=2",
    "--set", "split.kind=iid", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """Run a command as on a terminal of 80 columns; return what it printed."""

    def run(arguments: list[str]) -> str:
        shown = io.StringIO()
        made = partial(Console, force_terminal=True, width=80, file=shown, color_system=None)
        for module in (info, stages):
            monkeypatch.setattr(module, "Console", made)
            monkeypatch.setattr(module, "Display", lambda console, **how: Display(console, quiet=True))
        assert execute(arguments) == 0
        return shown.getvalue()

    return run


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "fedkseed"], ["settings"], ["doctor"], ["stages"]]
)
def test_no_word_is_broken_at_80_columns(arguments: list[str], terminal: Callable[[list[str]], str]) -> None:
    shown = terminal(arguments)
    assert max(map(len, shown.splitlines())) <= 80
    assert len(shown.splitlines()) > 5
    words = set(shown.split())
    if arguments == ["methods"]:
        for card in cards():
            assert {*card.summary.split(), *card.travels.split(), *card.source.split()} <= words
    if arguments == ["settings"]:
        for key, (_, meaning) in describe_settings().items():
            assert {key, *meaning.split()} <= words


def test_lines_are_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["methods"]) == 0
    shown = capsys.readouterr().out
    for card in cards():
        assert f"{card.name} ({card.kind}): {card.summary}\n" in shown
        assert f"    source  {card.source}\n" in shown


def test_a_very_narrow_terminal_gets_everything() -> None:
    shown = io.StringIO()
    console = Console(force_terminal=True, width=20, file=shown, color_system=None)
    fields(console, [("a label", "several words beside it")])
    paragraph(console, "and [more] below", indent=4)
    assert " ".join(shown.getvalue().split()) == "a label several words beside it and [more] below"


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]], ids=str)
def test_help_has_a_short_name(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*command, "-h"]) == 0
    assert "Usage: edgetune" in capsys.readouterr().out


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"edgetune {edgetune.__version__}\n"


@pytest.mark.parametrize("name", RECIPE_OPTIONS)
def test_help_says_the_defaults_that_a_recipe_has(name: str) -> None:
    option, default = RECIPE_OPTIONS[name], describe_settings()[RECIPE_OPTIONS[name].key][0]
    packaged = [load_recipe(packaged_recipe(method)) for method in tuning_names()]
    section, _, key = option.key.rpartition(".")
    used = {str(getattr(getattr(one, section) if section else one, key)) for one in packaged}
    if option.default is None:
        assert default is None
    elif option.default == "the recipe's":
        assert used != {str(default)}
    else:
        assert option.default == str(default)
        assert option.default in used or option.default == AUTO


def test_methods_and_settings_show_what_a_method_really_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["methods", "mezo_lora", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["defaults"]["learning_rate"], row["defaults"]["eps"], row["defaults"]["rank"]) == (
        AUTO,
        AUTO,
        8,
    )
    packaged = load_recipe(packaged_recipe("mezo_lora")).method
    assert row["packaged"]["learning_rate"] == packaged.learning_rate
    assert execute(["methods", "mezo_lora"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"learning_rate +auto\n", shown)
    assert re.search(r"learning_rate +0\.003\n", shown)
    assert execute(["settings"]) == 0
    settings = capsys.readouterr().out
    (line,) = [line for line in settings.splitlines() if line.startswith("method.learning_rate = ")]
    assert line == "method.learning_rate = auto"
    assert "method.directions_per_step = 5 (decomfl), " in settings
    assert "method.schedule = constant\n" in settings


LOOKING = """
import os, sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name == {heavy!r}:
            os.write(1, b"HEAVY")
            os._exit(0)
sys.meta_path.insert(0, Heavy())
from edgetune.cli import main
sys.argv[0] = "edgetune"
main()
"""
"""Ends a command when it begins to import something heavy, so that what it showed before can be seen."""


def until_heavy(arguments: list[str], *, heavy: str, tty: bool) -> str:
    """Return what a command shows until it imports something heavy."""
    command = [sys.executable, "-c", LOOKING.format(heavy=heavy), *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    if not tty:
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60).stdout
    reader, writer = pty.openpty()
    with subprocess.Popen(command, stdout=writer, stderr=writer, stdin=writer, env=environment) as process:
        os.close(writer)
        shown = b""
        try:
            while piece := os.read(reader, 1 << 16):
                shown += piece
        except OSError:  # how Linux ends a terminal
            pass
        assert process.wait(60) == 0
    os.close(reader)
    return shown.decode()


BUSY = [
    ["doctor"], ["settings"], ["stages"], ["methods", "mezo"], ["tune", "mezo"], ["federate", "mezo"], ["run"],
    ["suggest", "mezo"], ["compress", "embedded"], ["export", "embedded"], ["evaluate", "embedded"], ["bench", "step"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", BUSY, ids=" ".join)
def test_something_moves_before_anything_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    more = (
        ["--out", str(tmp_path / "x")]
        if arguments[0] in {"tune", "federate", "run", "compress", "export"}
        else []
    )
    assert re.search(
        r"(loading|reading|looking).*HEAVY", until_heavy(arguments + more, heavy="torch", tty=True), re.S
    )
    assert until_heavy(arguments + more, heavy="torch", tty=False) == "HEAVY"


@pytest.mark.parametrize(
    "arguments",
    [["doctor", "--json"], ["methods", "mezo", "--json"], ["suggest", "mezo", "--json"], ["run", "-q"]],
)
def test_nothing_moves_where_only_the_result_is_wanted(arguments: list[str]) -> None:
    shown = until_heavy(arguments, heavy="torch", tty=True)
    assert "loading" not in shown
    assert "reading" not in shown
    assert shown.endswith("HEAVY")


@pytest.mark.parametrize(
    "arguments", [["chat", "x"], ["chat", "x", "-p", "hello"], ["serve", "x"]], ids=" ".join
)
def test_something_moves_while_a_file_is_loaded(arguments: list[str]) -> None:
    heavy = "edgetune.export.process"
    assert re.search(r"loading the model.*HEAVY", until_heavy(arguments, heavy=heavy, tty=True), re.S)
    assert until_heavy(arguments, heavy=heavy, tty=False) == "HEAVY"


@pytest.mark.parametrize(
    "arguments", [["chat", "no such file"], ["serve", "no such file", "--port", "0"]], ids=" ".join
)
def test_a_file_is_served_without_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from edgetune.cli.app import execute; code = execute(sys.argv[1:]); "
        "sys.exit('torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 4, done.stderr


def test_the_folder_of_results_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["run", "--data", "nothing.jsonl"]) == 3


def test_a_display_moves_whenever_nothing_says_how_far_it_is() -> None:
    shown = io.StringIO()
    with Display(Console(force_terminal=True, width=100, file=shown), doing="fetching") as display:
        assert "fetching" in shown.getvalue()
        idle = display._bars.tasks[0]
        assert (idle.visible, idle.total) == (True, None)
        display.progress("rounds", 0.25, 2)
        assert not idle.visible
        assert display._bars.tasks[1].completed == 0.25
        display.progress("rounds", 2, 2)
        assert idle.visible
        assert idle.description == "working"
    display.stop()


def test_a_quiet_display_prints_nothing() -> None:
    shown = io.StringIO()
    with Display(Console(force_terminal=True, file=shown), quiet=True) as display:
        display.progress("rounds", 1, 2)
    assert shown.getvalue() == ""


@pytest.mark.parametrize("command", [["federate", "fedkseed"], ["tune", "mezo"], ["run"]])
def test_a_refused_run_leaves_no_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "deep" / "out"
    assert execute([*command, "--data", str(tmp_path / "nothing.jsonl"), "--out", str(out)]) == 3
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert (
        execute([*command, "--data", str(tmp_path / "nothing.jsonl"), "--out", str(tmp_path / "mine")]) == 3
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "a folder that was there stays"


@pytest.mark.parametrize("command", ["compress", "export"])
def test_a_refused_file_leaves_no_folder(command: str, tmp_path: Path) -> None:
    assert (
        execute([command, str(tmp_path / "no model"), "--out", str(tmp_path / "new" / "deep" / "m.gguf")])
        == 4
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("method", "then"), [("mezo", "compress"), ("mezo_prefix", "evaluate")])
def test_the_next_command_is_said_and_works(
    method: str, then: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    assert execute(["tune", method, *SMALL, "--out", str(out)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"next: edgetune {then} embedded --ledger ")
    assert execute(shlex.split(last)[2:]) == 0
    assert (out / "model.gguf").exists() == (then == "compress")
    capsys.readouterr()
    assert execute(["tune", method, *SMALL, "--out", str(out), "--quiet"]) == 0
    assert "next:" not in capsys.readouterr().out
