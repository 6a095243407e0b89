"""Talk to a GGUF file in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from edgetune.export.gguf_file import NFC, NORMALIZER
from edgetune.export.llama_cpp import ContextFullError, LlamaCpp
from edgetune.export.parity import composed

Message = dict[str, str]
LEAVE = ("", "/exit", "/quit")
"""Lines that end the conversation."""


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def chat(
    path: Path,
    *,
    read: Callable[[str], str] = input,
    write: Callable[[str], object] = _print,
    max_new_tokens: int = 256,
    threads: int = 1,
    context: int = 0,
) -> list[Message]:
    """Hold a conversation, answers streamed as they come, until /exit, an empty line, end of input or Ctrl-C.

    Ctrl-C during an answer ends that answer only. When the conversation outgrows the context, its oldest
    exchange is forgotten and said so.

    Args:
        path: the GGUF file, with a chat template.
        read: takes the prompt to show, returns a line; raises EOFError at the end, like `input`.
        write: receives pieces of text without line ends of their own.
        max_new_tokens: longest answer.
        threads: CPU threads.
        context: tokens remembered; 0 for the model's own, at most 4096.

    Returns:
        The messages of the conversation.

    Raises:
        ModelError: if the file cannot be loaded, has no template, or one message alone outgrows the context.
        MissingExtraError: if `xllamacpp` is not installed.
    """
    messages: list[Message] = []
    with LlamaCpp(path, threads=threads, context=context) as llama:
        composes = llama.metadata.get(NORMALIZER) == NFC
        llama.render([{"role": "user", "content": "?"}])
        while True:
            try:
                line = read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                write("\n")
                return messages
            if line in LEAVE:
                return messages
            messages.append({"role": "user", "content": composed(line) if composes else line})
            messages.append({"role": "assistant", "content": _answer(llama, messages, write, max_new_tokens)})
            write("\n")


def _answer(
    llama: LlamaCpp, messages: list[Message], write: Callable[[str], object], max_new_tokens: int
) -> str:
    """Stream one answer, forgetting the oldest exchanges until the conversation fits."""
    pieces: list[str] = []

    def show(piece: str) -> bool:
        pieces.append(piece)
        write(piece)
        return False

    while True:
        try:
            return llama.chat(messages, max_new_tokens=max_new_tokens, on_text=show)
        except ContextFullError:
            if len(messages) < 3:
                raise
            del messages[:2]
            write("(the oldest exchange no longer fits and is forgotten)\n")
        except KeyboardInterrupt:
            return "".join(pieces)
