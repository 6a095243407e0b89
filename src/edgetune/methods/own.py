"""A tuning method in a file of the user's own: executed because it was named, known by what it says."""

from __future__ import annotations

import re
import sys
import traceback
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from edgetune.core.errors import ConfigError
from edgetune.methods.cards import cards
from edgetune.methods.method import TuningMethod

LARGEST = 1_000_000
"""Bytes of a method file."""
MODULE = "edgetune_method_"
"""Begins the name of the module that a file becomes; the rest is its digest, so that a part's name does not depend on
where the file lies."""
_HINT = "see docs/python.md for a method in a file of one's own"


def method_of(path: Path) -> TuningMethod:
    """Return the `METHOD` of a Python file, which is executed.

    The method's digest covers the file's bytes: devices and a resumed run must agree on them. The file stands alone; it
    may import edgetune and whatever is installed.

    Args:
        path: a .py file that somebody named in a command or a program.

    Raises:
        ConfigError: if there is no such file, it raises, defines no `METHOD`, or its name is one of edgetune's own.
    """
    module, digest = module_of(path)
    found = getattr(module, "METHOD", None)
    if not isinstance(found, TuningMethod):
        said = "defines no METHOD" if found is None else f"METHOD is a {type(found).__name__}"
        raise ConfigError(f"{said}, but a TuningMethod is needed", where=path, hint=_HINT)
    if re.fullmatch("[a-z][a-z0-9_]{0,63}", found.name) is None:
        raise ConfigError(f"a method is called like a_name, not {found.name[:80]!r}", where=path)
    if found.name in {card.name for card in cards()}:
        raise ConfigError(
            f"{found.name!r} is a method of edgetune", where=path, hint="give yours a name of its own"
        )
    return replace(found, origin=digest)


def module_of(path: Path) -> tuple[ModuleType, str]:
    """Execute a Python file that somebody named; return it as a module, and its SHA-256.

    Raises:
        ConfigError: if there is no such file, or it raises.
    """
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ConfigError(f"not a Python file of at most {LARGEST:,} bytes", where=path, hint=_HINT)
        source = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the method's file: {error}", where=path, hint=_HINT) from error
    digest = sha256(source).hexdigest()
    return _executed(path, source, MODULE + digest[:16]), digest


def _executed(path: Path, source: bytes, name: str) -> ModuleType:
    """Return the file as a module; the same bytes are executed once."""
    known = sys.modules.get(name)
    if known is not None:
        return known
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        what = str(error) or "no message"
        raise ConfigError(
            f"the method's file raised {type(error).__name__}: {what}", where=_place(path, error)
        ) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _place(path: Path, error: BaseException) -> str:
    """Return the line of the file that an error came through."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else str(path)
