"""The commands, and how their errors reach a person: one line and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from edgetune import __version__
from edgetune.cli import (
    artefacts,
    bench,
    certs,
    fetch,
    hosts,
    info,
    prune,
    runs,
    shares,
    stages,
    status,
    suggest,
    talk,
    teach,
    update,
)
from edgetune.core.errors import INTERRUPTED, ConfigError, EdgetuneError, OutputError, TerminatedError

INTERNAL_ERROR = 70
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)
UNWRITABLE = (
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
)  # fmt: skip
"""Errors of the system that are the file's or the disk's and not ours."""

LONGEST = 2000
"""Characters of an error's line; hostile input must not fill a terminal."""
EPILOG = """Exit codes: 0 done, 2 bad option or recipe, 3 data, 4 model, 5 digest mismatch, 6 cannot write,
7 exported file differs, 8 missing extra, 9 diverged, 10 diverged after it had learnt: completed with the best round,
11 server and device do not come together, 70 internal error, 130 interrupted (129 and 143: by the system's signals
HUP and TERM)."""

app = typer.Typer(
    name="edgetune",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a language model across edge devices whose data never leaves them, compress it in one shot, "
    "and hand back a file those devices run.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgetune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Say which version this is."),
    ] = False,
) -> None:
    pass


for group in (
    runs,
    hosts,
    suggest,
    artefacts,
    prune,
    teach,
    talk,
    update,
    fetch,
    info,
    stages,
    bench,
    certs,
    shares,
    status,
):
    group.register(app)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code: 0, or the `exit_code` of the error (edgetune.core.errors), 2 for a wrong option,
        70 for a bug (its traceback is shown if EDGETUNE_TRACEBACK is set), 130 after Ctrl-C, 129 and 143 after the
        signals HUP and TERM, which end a command as Ctrl-C does.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    with _ended_in_order() as stopped:
        return _run(arguments, errors, stopped)


@contextmanager
def _ended_in_order() -> Iterator[list[TerminatedError]]:
    """Turn Ctrl-C and the signals of a closing terminal or a stopping system into one; yields those that came."""
    came: list[TerminatedError] = []

    def stop(number: int, frame: object) -> None:
        came.append(TerminatedError(number))
        raise came[-1]

    ours = threading.current_thread() is threading.main_thread()
    before = {one: signal.getsignal(one) for one in SIGNALS if ours}
    taken = {one: handler for one, handler in before.items() if handler in UNTOUCHED}
    for one in taken:
        signal.signal(one, stop)
    try:
        yield came
    finally:
        for one, handler in taken.items():
            signal.signal(one, handler)


def _run(arguments: Sequence[str], errors: Console, stopped: list[TerminatedError]) -> int:
    try:
        # Typer turns Ctrl-C and a command's own exit code into returned numbers instead of exceptions.
        code = app(list(arguments), standalone_mode=False, prog_name="edgetune")
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        pass
    except Exception as error:
        if not stopped:  # else a library that was importing has made an error of its own of it
            return _failed(error, errors, arguments)
    else:
        return code if isinstance(code, int) else 0
    code = stopped[0].exit_code if stopped else INTERRUPTED
    return _say(errors, "interrupted; run the same command again to go on", code)


def _failed(error: Exception, errors: Console, arguments: Sequence[str]) -> int:
    """Say what went wrong; the last line of defence: a bug is still one line and a code."""
    if isinstance(error, EdgetuneError):
        return _say(errors, str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        what = f"{str(error.filename or 'output')[:400]}: {error.strerror}"
        return _say(errors, what, OutputError.exit_code)
    wrong_usage = getattr(error, "format_message", None)  # typer brings its own copy of click's errors
    if wrong_usage is None:
        return _bug(errors, error, arguments)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(wrong_usage())
        return ConfigError.exit_code
    return _say(errors, f"{wrong_usage()} (see edgetune --help)", ConfigError.exit_code)


def _say(console: Console, text: str, code: int) -> int:
    console.print("[bold red]error:[/] ", end="")
    words = " ".join(text[: 4 * LONGEST].split())
    line = "".join(one if one.isprintable() else "?" for one in words)  # no name commands a terminal
    console.print(
        line if len(line) <= LONGEST else f"{line[: LONGEST - 200]} ... {line[-150:]}", markup=False
    )
    return code


def _bug(console: Console, error: BaseException, arguments: Sequence[str]) -> int:
    if os.environ.get("EDGETUNE_TRACEBACK"):
        traceback.print_exception(error)
    detail = f"{type(error).__name__}: {error}"
    hint = "a bug; EDGETUNE_TRACEBACK=1 shows where"
    return _say(console, f"edgetune {shlex.join(arguments)}: {detail} ({hint})", INTERNAL_ERROR)
