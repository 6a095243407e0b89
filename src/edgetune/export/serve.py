"""llama.cpp's own OpenAI-compatible server for one GGUF file, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetune.export.llama_cpp import LOOPBACK, LlamaCpp


@contextmanager
def running_server(
    path: Path, *, host: str = LOOPBACK, port: int = 0, threads: int = 1, context: int = 0
) -> Iterator[str]:
    """Serve a file inside a `with` block.

    Args:
        path: the GGUF file.
        host: interface; anything but loopback offers the model to the network without a password.
        port: 0 for any free one.
        threads: CPU threads.
        context: tokens of a prompt with its answer; 0 for the model's own, at most 4096.

    Yields:
        The base URL an OpenAI client takes, for example `http://127.0.0.1:8080/v1`.

    Raises:
        ModelError: if llama.cpp refuses the file or the port is taken.
        MissingExtraError: if `xllamacpp` is not installed.
    """
    with LlamaCpp(path, host=host, port=port, threads=threads, context=context) as llama:
        yield f"{llama.address}/v1"


def serve(
    path: Path,
    *,
    host: str = LOOPBACK,
    port: int = 8080,
    threads: int = 1,
    context: int = 0,
    announce: Callable[[str], object] = print,
    until: threading.Event | None = None,
) -> None:
    """Serve a file until Ctrl-C, or until an event is set.

    Args:
        path, host, port, threads, context: as in `running_server`.
        announce: called once with the base URL when the server answers.
        until: ends the server when set; Ctrl-C always does.

    Raises:
        ModelError, MissingExtraError: as in `running_server`.
    """
    done = until or threading.Event()
    with running_server(path, host=host, port=port, threads=threads, context=context) as address:
        announce(address)
        try:
            done.wait()
        except KeyboardInterrupt:
            return
