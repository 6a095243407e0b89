"""`chat` and `serve`: what runs a GGUF file in llama.cpp."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.core.errors import ConfigError

Gguf = Annotated[Path, typer.Argument(help="A GGUF file.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default="all")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(chat)
    app.command()(serve)


def chat(
    file: Annotated[
        list[Path], typer.Argument(help="A GGUF file; several answer the same lines, one after another.")
    ],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Print the answer to this and leave; - reads standard input."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token each time; above it answers are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="What answers are drawn from.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    threads: Threads = None,
    lora: Annotated[
        list[Path] | None,
        typer.Option(help="An adapter put on the file (edgetune adapter); several are added."),
    ] = None,
) -> None:
    """Talk to a GGUF file in the terminal, through llama.cpp, or compare several.

    /help lists what a line can ask for; Ctrl-D leaves.

    Exit codes: 2 wrong option; 4 no such file, or none that can chat.
    """
    asked = sys.stdin.read() if prompt == "-" else prompt
    with Display(Console(), doing="loading the model") as display:
        from edgetune.export.chat import Manner, answer, labels
        from edgetune.export.chat import chat as talk

        manner = Manner(system, temperature, seed, max_tokens)
        if asked is None:
            cores, put_on = _threads(threads), lora or ()
            _converse(display, lambda **how: talk(file, manner=manner, threads=cores, adapters=put_on, **how))
            return
        said = [
            answer(one, asked, manner=manner, threads=_threads(threads), adapters=lora or ()) for one in file
        ]
    for name, text in zip(labels(file), said, strict=True):
        typer.echo(text if len(file) == 1 else f"[{name}] {text}")


def _converse(display: Display, talk: Callable[..., object]) -> None:
    """Talk with a person, or answer the lines of a pipe without prompts."""
    person = sys.stdin.isatty()

    def ready() -> None:
        display.stop()
        if person:
            typer.echo("/help lists the commands, Ctrl-D leaves")

    talk(read=input if person else lambda _: input(), ready=ready)


def serve(
    file: Gguf,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="EDGETUNE_API_KEY", help="The key clients must send; a random one without it."),
    ] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Ask for no key; loopback only.")] = False,
    threads: Threads = None,
) -> None:
    """Serve a GGUF file as an OpenAI-compatible HTTP server, through llama.cpp, until Ctrl-C.

    Exit codes: 2 taken port or wrong option; 4 no such file, or no GGUF file.
    """
    if api_key is not None and no_api_key:
        raise ConfigError("a key and no key", where="--no-api-key", hint="leave one of them out")
    with Display(Console(), doing="loading the model") as display:
        from edgetune.export.serve import Address, new_key
        from edgetune.export.serve import serve as listen

        def announce(address: Address) -> None:
            display.stop()
            typer.echo(address.url)
            if address.key is not None and address.key != api_key:
                typer.echo(f"API key: {address.key}")

        key = None if no_api_key else new_key() if api_key is None else api_key
        listen(file, host=host, port=port, key=key, threads=_threads(threads), announce=announce)


def _threads(asked: int | None) -> int:
    from edgetune.measure.machine import usable_cores

    return asked or usable_cores()
