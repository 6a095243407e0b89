"""Python in a process of its own with limits of time and memory: for what strangers wrote and may not end."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import time


def start(module: str, function: str) -> subprocess.Popen[bytes]:
    """Start a process that calls a function of this package, with pipes for its standard input and output.

    Isolated, so that no file of the working folder is taken for a module; the path is this process's own.

    Args:
        module: importable without torch or transformers, or the start takes seconds.
        function: takes nothing; should call `limit` first.

    Raises:
        OSError: no interpreter can be started.
    """
    call = f"import sys; sys.path[:] = sys.argv[1:]; from {module} import {function}; {function}()"
    return subprocess.Popen(
        [sys.executable, "-I", "-c", call, *filter(None, sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def limit(memory: int) -> None:
    """Limit the address space of this process, where the system enforces that (Linux does); leave no core file.

    Args:
        memory: bytes.
    """
    import resource

    for kind, wanted in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        kept = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (kept, hard))


def allow(seconds: int) -> None:
    """Let this process compute for so many seconds from now (up to one more); then the system ends it."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    wanted = math.ceil(time.process_time()) + seconds
    kept = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (kept, hard))


def ran_out_of_time(code: int) -> bool:
    """Tell from an exit code whether the system ended a process for its time."""
    return code in (-signal.SIGXCPU, -signal.SIGKILL)
