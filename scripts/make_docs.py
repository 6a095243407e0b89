"""Write the reference pages that follow from the code: every method and every setting (`make docs`)."""

from __future__ import annotations

from pathlib import Path

from edgetune.methods import catalogue
from edgetune.methods.options import defaults
from edgetune.recipe.method_section import AUTO
from edgetune.recipe.open_settings import OPEN
from edgetune.recipe.recipe import describe_settings

DOCS = Path(__file__).parent.parent / "docs"


def methods_page() -> str:
    """Return the page of all methods, one section each."""
    lines = ["# Methods", "", "Written by `make docs`; do not edit.", ""]
    for name in catalogue.tuning_names():
        method = catalogue.tuning_method(name)
        lines += [
            f"## {name}", "", method.summary, "", f"- travels: {method.travels}", f"- memory: {method.memory}",
            f"- source: {method.source}",
            f"- defaults: {', '.join(_said(key, value) for key, value in defaults(method).items())}",
            "",
        ]  # fmt: skip
    for name in catalogue.compression_names():
        rule = catalogue.compression_method(name)
        lines += [f"## {name}", "", rule.summary, "", f"- source: {rule.source}", ""]
    return "\n".join(lines)


def _said(key: str, value: object) -> str:
    return f"`{key} = {AUTO}` (published: {value})" if key in OPEN else f"`{key} = {value}`"


def settings_page() -> str:
    """Return the page of all recipe keys."""
    lines = ["# Settings", "", "Every key of a recipe; written by `make docs`, do not edit.", "",
             "| key | default | meaning |", "|---|---|---|"]  # fmt: skip
    for key, (default, meaning) in describe_settings().items():
        lines.append(f"| `{key}` | {'' if default is None else default} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (DOCS / "methods.md").write_text(methods_page(), encoding="utf-8")
    (DOCS / "settings.md").write_text(settings_page(), encoding="utf-8")
