"""Talk to a GGUF file in the terminal, or to several at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import INTERRUPTED, ConfigError
from edgetune.export.composing import NFC, NORMALIZER, composed
from edgetune.export.llama_cpp import MOST_SEED, ContextFullError, LlamaCpp

Message = dict[str, str]
Write = Callable[[str], object]
LEAVE = ("/exit", "/quit")
HELP = """/reset  forget the conversation; the system prompt stays
/exit   leave, as Ctrl-D does; Ctrl-C ends an answer
/help   this list
"""
MOST_TEMPERATURE = 10.0
"""Beyond it every answer is noise, and a typing error is likelier."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a file is to answer.

    Args:
        system: what stands before the conversation; None for nothing.
        temperature: 0 takes the most likely token each time; above it llama.cpp draws, with its usual cuts (the 40
            likeliest, then 95 % of the probability, then at least 5 % of the likeliest's); at most 10.
        seed: what each answer is drawn from, in [0, 2^32 - 1); it has no part at temperature 0.
        max_new_tokens: longest answer, at least 1.

    Raises:
        ConfigError: for a value out of range.
    """

    system: str | None = None
    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise ConfigError(
                f"{self.temperature} is not in 0 to {MOST_TEMPERATURE:g}", where="--temperature"
            )
        if not 0 <= self.seed <= MOST_SEED:
            raise ConfigError(f"{self.seed} is not in 0 to {MOST_SEED}", where="--seed")
        if self.max_new_tokens < 1:
            raise ConfigError("an answer has at least one token", where="--max-tokens")


class Conversation:
    """A loaded file and what was said so far.

    Args:
        llama: the file, with a chat template.
        manner: how it is to answer.

    Raises:
        ModelError: if the file has no template.
        ConfigError: if its template leaves the system prompt out or changes it.
    """

    def __init__(self, llama: LlamaCpp, manner: Manner) -> None:
        self._llama, self._manner = llama, manner
        self._composes = llama.metadata.get(NORMALIZER) == NFC
        system = self._written(manner.system or "")
        self._opening: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        self.messages: list[Message] = []
        # For a template without a system prompt llama.cpp begins the first message with it.
        if system.strip() not in llama.render([*self._opening, {"role": "user", "content": "?"}]):
            what = "the file's chat template does not write the system prompt as it is"
            raise ConfigError(what, where="--system", hint="begin the first message with it instead")

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages.clear()

    def say(self, text: str, write: Write) -> str:
        """Return the answer to a message, its pieces written as they come.

        When the conversation outgrows the context, its oldest exchanges are forgotten and said so.

        Raises:
            ContextFullError: if this message alone outgrows the context; it is forgotten.
            KeyboardInterrupt: at Ctrl-C; what was written until then is the answer that is remembered.
        """
        pieces: list[str] = []

        def show(piece: str) -> bool:
            pieces.append(piece)
            write(piece)
            return False

        self.messages.append({"role": "user", "content": self._written(text)})
        try:
            self._fit(show, write)
        except ContextFullError:
            self.messages.pop()
            raise
        except BaseException:
            self._answered(pieces)
            raise
        return self._answered(pieces)

    def _fit(self, show: Callable[[str], bool], write: Write) -> None:
        """Let the file answer, forgetting the oldest exchanges until the conversation fits."""
        manner = self._manner
        while True:
            try:
                self._llama.chat(
                    [*self._opening, *self.messages],
                    max_new_tokens=manner.max_new_tokens,
                    temperature=manner.temperature,
                    seed=manner.seed,
                    on_text=show,
                )
                return
            except ContextFullError:
                if len(self.messages) < 3:
                    raise
                del self.messages[:2]
                write("(the oldest exchange no longer fits and is forgotten)\n")

    def _answered(self, pieces: list[str]) -> str:
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return self.messages[-1]["content"]

    def _written(self, text: str) -> str:
        return composed(text) if self._composes else text


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def chat(
    paths: Sequence[Path],
    *,
    read: Callable[[str], str] = input,
    write: Write = _print,
    ready: Callable[[], object] = lambda: None,
    manner: Manner = Manner(),
    threads: int = 1,
    context: int = 0,
    adapters: Sequence[Path] = (),
) -> list[list[Message]]:
    """Hold a conversation, answers streamed as they come, until /exit, end of input, or Ctrl-C at the prompt.

    Several files are told the same lines; each answers in turn under its name, and remembers its own answers. Ctrl-C
    during an answer ends that answer only. An empty line does nothing; /help lists the commands.

    Args:
        paths: GGUF files with a chat template, one or more; all are loaded together.
        read: takes the prompt to show, returns a line; raises EOFError at the end, like `input`.
        write: receives pieces of text without line ends of their own.
        ready: called once the files are loaded.
        manner: how they answer.
        threads: CPU threads.
        context: tokens remembered; 0 for the model's own, at most 4096.
        adapters: LoRA files put on each.

    Returns:
        The messages of the conversation with each file since the last /reset.

    Raises:
        ModelError: if a file cannot be loaded or has no template.
        ConfigError: if a template does not write the system prompt as it is.
        MissingExtraError: if `xllamacpp` is not installed.
    """
    with ExitStack() as stack:
        names = labels(paths)
        talks = {}
        for name, path in zip(names, paths, strict=True):
            llama = LlamaCpp(path, threads=threads, context=context, adapters=adapters)
            talks[name] = Conversation(stack.enter_context(llama), manner)
        ready()
        while True:
            try:
                line = read("> ").strip()
            except (EOFError, KeyboardInterrupt) as end:
                _refuse_to_stay(end)
                write("\n")
                return [talk.messages for talk in talks.values()]
            if line in LEAVE:
                return [talk.messages for talk in talks.values()]
            if line:
                _turn(talks, line, write)


def labels(paths: Sequence[Path]) -> list[str]:
    """Return a name for each of some files: the last parts of its path that tell it from the others."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


def answer(
    path: Path,
    prompt: str,
    *,
    manner: Manner = Manner(),
    threads: int = 1,
    context: int = 0,
    adapters: Sequence[Path] = (),
) -> str:
    """Return the answer to one message.

    Args:
        path: the GGUF file.
        manner, threads, context, adapters: as in `chat`.
        prompt: the message, not empty.

    Raises:
        ConfigError: if the message is empty, or the template does not write the system prompt as it is.
        ModelError: as `chat`; ContextFullError if the message outgrows the context.
        MissingExtraError: if `xllamacpp` is not installed.
    """
    if not prompt.strip():
        raise ConfigError("the message is empty", where="--prompt")
    with LlamaCpp(path, threads=threads, context=context, adapters=adapters) as llama:
        return Conversation(llama, manner).say(prompt, lambda piece: None)


def _turn(talks: Mapping[str, Conversation], line: str, write: Write) -> None:
    """Do what one line asks for. A word behind a slash is a command, anything else is said."""
    if line == "/reset":
        for talk in talks.values():
            talk.reset()
        write("(forgotten)\n")
    elif line == "/help":
        write(HELP)
    elif line.startswith("/") and line[1:].isalpha():
        write(f"({line} is no command)\n{HELP}")
    else:
        for name, talk in talks.items():
            if len(talks) > 1:
                write(f"[{name}] ")
            _said(talk, line, write)


def _said(talk: Conversation, line: str, write: Write) -> None:
    try:
        talk.say(line, write)
    except ContextFullError as error:
        write(f"({error.what})")
    except KeyboardInterrupt as end:
        _refuse_to_stay(end)
    write("\n")


def _refuse_to_stay(end: BaseException) -> None:
    """Let a signal of the system end the program: only Ctrl-C is for the answer."""
    if getattr(end, "exit_code", INTERRUPTED) != INTERRUPTED:
        raise end
