"""An OpenAI-compatible server for one GGUF file, on loopback and with a key unless someone asks for less."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import ModelError
from edgetune.export.front import Front
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.lora import Adapter

LOOPBACK = "127.0.0.1"
WATCH_SECONDS = 0.5
"""How soon the death of llama.cpp is noticed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens and what it asks for.

    Args:
        url: the base URL an OpenAI client takes, for example `http://127.0.0.1:8080/v1`.
        key: the client's API key; None if none is asked for.
    """

    url: str
    key: str | None


def new_key() -> str:
    """Return a random API key of 192 bits."""
    return secrets.token_urlsafe(24)


@contextmanager
def running_server(
    path: Path,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    key: str | None,
    adapters: Sequence[Adapter] = (),
    threads: int = 1,
    context: int = 0,
) -> Iterator[tuple[Address, LlamaCpp]]:
    """Serve a file inside a `with` block.

    Args:
        path: the GGUF file.
        host: interface; anything but loopback offers the model to the network, to whoever knows the key.
        port: 0 for any free one.
        key: the API key (`new_key()`); None asks for none, which only loopback allows.
        adapters: loaded with the file; whoever has the key changes their scales by `POST /lora-adapters`.
        threads: CPU threads.
        context: tokens of a prompt with its answer; 0 for the model's own, at most 4096.

    Yields:
        The address, and the loaded file.

    Raises:
        ConfigError: if host, port and key do not fit, or the port is taken.
        ModelError: if llama.cpp refuses the file, or an adapter is damaged or another base's.
        MissingExtraError: if `xllamacpp` is not installed.
    """
    # The port is taken before the model is loaded, which may take minutes.
    with (
        Front(host, port, key) as front,
        LlamaCpp(path, threads=threads, context=context, adapters=adapters) as llama,
        front.serving(llama),
    ):
        yield Address(f"{front.url}/v1", key), llama


def serve(
    path: Path,
    *,
    host: str = LOOPBACK,
    port: int = 8080,
    key: str | None,
    adapters: Sequence[Adapter] = (),
    threads: int = 1,
    context: int = 0,
    announce: Callable[[Address], object] = print,
    until: threading.Event | None = None,
) -> None:
    """Serve a file until Ctrl-C, or until an event is set.

    Args:
        path, host, port, key, adapters, threads, context: as in `running_server`.
        announce: called once with the address when the server answers.
        until: ends the server when set; Ctrl-C always does.

    Raises:
        ConfigError, ModelError, MissingExtraError: as in `running_server`; ModelError also when llama.cpp dies.
    """
    done = until or threading.Event()
    running = running_server(
        path, host=host, port=port, key=key, adapters=adapters, threads=threads, context=context
    )
    with running as (address, llama):
        announce(address)
        try:
            while not done.wait(WATCH_SECONDS):
                if not llama.process.alive:
                    raise ModelError("llama.cpp died while it served this file", where=path)
        except KeyboardInterrupt:
            return
