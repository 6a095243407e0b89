"""The errors a user can meet: what happened, where, and what to try; each class carries its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

LONGEST = 800
"""Characters of a part of an error's text."""
STOPPED = 10
"""Exit code of a run that climbed, went back to its best round and was completed with that: its results are usable."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class TerminatedError(KeyboardInterrupt):
    """The system asked the process to stop; what Ctrl-C ends in order ends in order then too.

    Args:
        signal: number of the signal.
    """

    def __init__(self, signal: int) -> None:
        self.exit_code = 128 + signal
        super().__init__(signal)


class EdgetuneError(Exception):
    """Root of every error this package raises on purpose.

    Args:
        what: what happened, one sentence without a full stop.
        where: the file, tensor, device or field concerned, if any.
        hint: what to try, if anything is known to help.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = _short(what), None if where is None else _short(str(where)), hint
        text = self.what if where is None else f"{self.where}: {self.what}"
        super().__init__(text if hint is None else f"{text} ({hint})")


def _short(text: str) -> str:
    """Cut the middle out of what a hostile name or value made long: a person reads one line."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 100]} ... {text[-80:]}"


class ConfigError(EdgetuneError):
    """A recipe, option or method is not valid (exit code 2)."""

    exit_code = 2


class DataError(EdgetuneError):
    """A data file cannot be read or lacks what is needed (exit code 3)."""

    exit_code = 3


class ModelError(EdgetuneError):
    """A model folder, tensor file or tokenizer is missing, damaged or unsupported (exit code 4)."""

    exit_code = 4


class DigestError(EdgetuneError):
    """Two artefacts that must belong together do not: a ledger and its base, a frame and its method (exit code 5)."""

    exit_code = 5


class OutputError(EdgetuneError):
    """A result cannot be written: full disk, read-only folder (exit code 6)."""

    exit_code = 6


class VerifyError(EdgetuneError):
    """An exported file does not compute what was measured (exit code 7)."""

    exit_code = 7


class MissingExtraError(EdgetuneError):
    """An optional library is not installed (exit code 8)."""

    exit_code = 8

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the library {library!r}, which is not installed",
            hint=f"pip install 'edgetune[{extra}]'",
        )


class DivergenceError(EdgetuneError):
    """Training produced nothing usable: every loss of a round was NaN or infinite (exit code 9)."""

    exit_code = 9


class HostError(EdgetuneError):
    """Another host is not who it should be, turned us away, or said what nobody understands (exit code 11)."""

    exit_code = 11


class UnreachableError(HostError):
    """Another host does not answer; it may do so later (exit code 11)."""


class LimitError(EdgetuneError):
    """A round takes more than its device allows; it ends a round and no command: there is no exit code of its own."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to a misspelt one, or None if nothing is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
