"""What messages and help tell a person to type exists: every option, and every key of a recipe."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer.main

import edgetune
from edgetune.cli.app import app
from edgetune.recipe.recipe import describe_settings

SOURCE = Path(edgetune.__file__).parent
OPTION = re.compile(r"(?<![\w(-])--[a-z][a-z0-9-]+(?![\w:-])")
SECTIONS = sorted({key.partition(".")[0] for key in describe_settings() if "." in key})
KEY = re.compile(rf"(?<![\w./{{])(?:{'|'.join(SECTIONS)})\.[a-z_]+(?![\w(./])")
NO_KEY = re.compile(
    r"model\.(gguf|onnx|pte|safetensors|embed_tokens|layers|norm|final_layernorm)$|split\.count$"
)
"""Files, tensors, and a key of GGUF."""
OTHERS = {"--help", "--no-deps", "--dest", "--only-binary", "--disable-pip-version-check", "--merge"}
"""The option that every command has, those of pip, and one of llama.cpp."""


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what a file says beside its docstrings, and where."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    documents = {id(value) for value in bare if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.lineno, node.value


def said(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        found += [(f"{place}:{line}", one) for line, text in strings(path) for one in pattern.findall(text)]
    return found


def test_every_option_that_is_named_exists() -> None:
    commands = typer.main.get_command(app)
    known = set(OTHERS)
    waiting = [commands]
    while waiting:
        command = waiting.pop()
        known |= {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
        waiting += list(getattr(command, "commands", {}).values())
    found = said(OPTION)
    assert {"--columns", "--lr", "--set", "--test-data"} <= {option for _, option in found}
    assert [(place, option) for place, option in found if option not in known] == []


def test_every_key_that_is_named_exists() -> None:
    found = [(place, key) for place, key in said(KEY) if not NO_KEY.match(key)]
    assert {"data.calibration", "data.held_out", "federation.devices", "method.eps"} <= {
        key for _, key in found
    }
    assert [(place, key) for place, key in found if key not in describe_settings()] == []


def test_the_walk_sees_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        '"""--no."""\n\n\ndef f(n):\n    """--no."""\n    return f"--wrong-option {n} data.nothing=1", "x.data.y"\n'
    )
    found = [text for _, text in strings(path)]
    assert [one for text in found for one in OPTION.findall(text)] == ["--wrong-option"]
    assert [one for text in found for one in KEY.findall(text)] == ["data.nothing"]
