"""What methods say of themselves, read from their files: a list needs nothing of what they compute with."""

from __future__ import annotations

import ast
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
KINDS = ("tuning", "compression")
"""Folders of method files, in the order of a list."""


def is_file(name: object) -> bool:
    """Say whether a method's name is that of a Python file, which is executed to get the method."""
    return isinstance(name, str) and name.endswith(".py")


@dataclass(frozen=True, slots=True)
class Card:
    """A method in words.

    Args:
        name: public name, the name of its file.
        kind: tuning or compression.
        summary: one sentence.
        travels: what a device and the server send each other.
        memory: memory class relative to inference.
        source: paper and reference implementation.
    """

    name: str
    kind: str
    summary: str
    travels: str
    memory: str
    source: str


def cards() -> list[Card]:
    """Return the cards of all methods, by kind and name.

    Cost: milliseconds; torch is imported only where a file words its method otherwise than in constants.
    """
    return [
        _card(kind, module.name) for kind in KINDS for module in pkgutil.iter_modules([str(FOLDER / kind)])
    ]


def _card(kind: str, name: str) -> Card:
    said = _constants(kind, name)
    if kind == "compression":
        memory = "one decoder block's Hessians beside the model" if said.get("compensate") else "one matrix"
        said = {**said, "travels": "nothing", "memory": memory}
    words = {field: said.get(field) for field in ("name", "summary", "travels", "memory", "source")}
    if None in words.values():
        method = import_module(f"edgetune.methods.{kind}.{name}").METHOD
        words = {field: word or getattr(method, field) for field, word in words.items()}
    return Card(kind=kind, **{field: str(word) for field, word in words.items()})


def _constants(kind: str, name: str) -> dict[str, Any]:
    """Return the constants that `METHOD = ...` is given by name; those of the method it replaces come first."""
    tree = ast.parse((FOLDER / kind / f"{name}.py").read_text(encoding="utf-8"))
    calls = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["METHOD"]
    ]
    found: dict[str, Any] = {}
    for call in calls:
        if call.args and isinstance(call.args[0], ast.Name):
            found |= _replaced(tree, kind, call.args[0].id)
        given = {one.arg: one.value for one in call.keywords if one.arg}
        found |= {field: getattr(value, "value", None) for field, value in given.items()}
    return found


def _replaced(tree: ast.Module, kind: str, called: str) -> dict[str, Any]:
    """Return the constants of the method file that a name was imported from."""
    package = f"edgetune.methods.{kind}."
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            for alias in node.names:
                if alias.name == "METHOD" and (alias.asname or alias.name) == called:
                    return _constants(kind, str(node.module).removeprefix(package))
    return {}
