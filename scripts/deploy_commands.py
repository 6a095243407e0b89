"""The commands of edgetune in units, compose file and pages, and whether the command line takes them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

ENVIRONMENTS = {"edgetune-server.service": "server.env", "edgetune-device@.service": "device.env"}
"""The units, and the file of each one's settings."""
PAGES = ("deploy/README.md", "docs/fleet.md")


def environment(path: Path) -> dict[str, str]:
    """Return the settings of an environment file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def commands_of(root: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Yield every command of edgetune: where, its words after `edgetune`, and whether it is whole or only spoken of."""
    deploy = root / "deploy"
    for name, settings in ENVIRONMENTS.items():
        for line in re.findall(r"^ExecStart=(.*)", (deploy / name).read_text(encoding="utf-8"), re.M):
            yield name, expanded(line, environment(deploy / settings))[1:], True
    for name, one in yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ].items():
        said = one.get("command", "")
        yield f"compose.yaml, {name}", shlex.split(said) if isinstance(said, str) else said, True
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        fences = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        for line in "".join(fences).replace("\\\n", " ").splitlines():
            if words := spoken(line):
                yield page, words, True
        outside = re.sub(r"(?ms)^```.*?^```", "", text)
        yield from ((page, said.split(), False) for said in re.findall(r"`edgetune ([^`]+)`", outside))


def expanded(line: str, values: Mapping[str, str]) -> list[str]:
    """Return the words of a unit's command for instance 0, as systemd does: ${NAME} is one word, $NAME many."""
    line = re.sub(r"\$\{(\w+)\}", lambda one: shlex.quote(values.get(one[1], "")), line.replace("%i", "0"))
    return shlex.split(re.sub(r"\$(\w+)", lambda one: values.get(one[1], ""), line))


def spoken(line: str) -> list[str]:
    """Return the words after `edgetune` of a line for a shell; nothing if it runs something else."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    starts = [at for at, word in enumerate(words) if word.endswith("/bin/edgetune")]
    starts = starts or [at for at, word in enumerate(words) if word == "edgetune"]
    runs = not starts or starts[0] == 0 or words[0] == "sudo" or {"run", "exec"} & set(words[: starts[0]])
    if not starts or not runs:
        return []
    rest = words[starts[0] + 1 :]
    ends = [at for at, word in enumerate(rest) if word in ("&", "|", ">", "&&", ";", "||")]
    return rest[: ends[0]] if ends else rest


def fault_of(cli: Any, words: list[str], *, whole: bool = True) -> str | None:
    """Return why the command line would refuse these words; None if it takes them.

    Args:
        cli: a click group.
        words: after `edgetune`.
        whole: whether what is required must be there.
    """
    if not words or words[0].startswith("-"):
        return None
    command = cli.commands.get(words[0])
    if command is None:
        return f"there is no command {words[0]!r}"
    if not whole:
        options = {flag for one in command.params for flag in one.opts}
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in options]
        return f"no such option: {', '.join(unknown)}" if unknown else None
    try:
        command.make_context(words[0], list(words[1:]))
    except typer.Exit:
        return None  # --help
    except Exception as error:
        said = getattr(error, "format_message", None)  # typer brings its own copy of click's errors
        return str(said() if said else error)
    return None
