"""What counts in an answer: the number at its end, its first line, a letter, whatever a pattern finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

import regex

from edgetune.core.errors import ConfigError, nearest

Extract = Callable[[str], str | None]
"""Called with an answer: what counts in it, None where there is nothing."""

SECONDS = 1.0
"""What a pattern may take on one answer."""
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-\u2212][$\u20ac\u00a3]?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?", re.ASCII
)
_MARK = "####"
_LETTERS = (
    re.compile(r"\b(?i:answer)(?:\s+(?i:is))?\s*:?\s*\(?([A-Z])\b"),
    re.compile(r"^\W*([A-Z])(?=\W*$|[).:,]|\s*\n)"),
    re.compile(r"\(([A-Z])\)"),
)


def last_number(text: str) -> str | None:
    """Return the last number in digits, without thousands separators, currency or idle zeros.

    Where a line says `#### 42`, as the answers of GSM8K do, it is the first number behind the first such mark, whatever
    follows.
    """
    _, mark, behind = text.partition(_MARK)
    found = _NUMBER.findall(behind if mark else text)
    if not found:
        return None
    number = found[0 if mark else -1].replace(",", "").replace("\u2212", "-")
    value = Decimal(re.sub(r"[^\d.-]", "", number))
    return f"{value.normalize():f}" if value else "0"


def first_line(text: str) -> str | None:
    """Return the first line that is not blank, without outer white space."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def letter(text: str) -> str | None:
    """Return the capital letter of a choice: behind `answer is`, at the beginning (`B`, `B.`), or in brackets."""
    found = (pattern.search(text) for pattern in _LETTERS)
    return next((match[1] for match in found if match), None)


def whole(text: str) -> str | None:
    """Return the answer without outer white space."""
    return text.strip() or None


EXTRACTORS: dict[str, Extract] = {
    "whole": whole,
    "first_line": first_line,
    "last_number": last_number,
    "letter": letter,
}
"""By public name; beside these, `regex:PATTERN`."""
_PATTERN = "regex:"


def extractor(name: str) -> Extract:
    """Return an extractor by its public name, or of a pattern: its first group, or all of its first match.

    Args:
        name: a key of `EXTRACTORS`, or `regex:` and a pattern of the package `regex`.

    Raises:
        ConfigError: no such extractor, with the nearest one; or no such pattern.
    """
    if name.startswith(_PATTERN):
        return _of_pattern(name.removeprefix(_PATTERN))
    if name not in EXTRACTORS:
        near = nearest(name, EXTRACTORS)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(EXTRACTORS)}, {_PATTERN}PATTERN"
        raise ConfigError(f"no extractor called {name[:60]!r}", where="evaluation.extract", hint=hint)
    return EXTRACTORS[name]


def _of_pattern(text: str) -> Extract:
    try:
        pattern = regex.compile(text)
    except (regex.error, RecursionError) as error:
        raise ConfigError(f"not a pattern: {error}", where="evaluation.extract") from error

    def extract(answer: str) -> str | None:
        try:
            match = pattern.search(answer, timeout=SECONDS)
        except TimeoutError as error:
            what = f"the pattern takes more than {SECONDS:g} s on one answer"
            raise ConfigError(what, where="evaluation.extract", hint="write a simpler one") from error
        if match is None:
            return None
        found = match[1] if pattern.groups else match[0]
        return (found or "").strip() or None

    return extract
