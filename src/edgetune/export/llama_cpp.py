"""llama.cpp: tokenise, complete, chat and exact log-probabilities of one GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgetune.core.errors import ModelError
from edgetune.core.gguf_read import Scalar, read_gguf
from edgetune.export.lora import Adapter, check_adapter
from edgetune.export.process import Process, RefusedError

MAX_CONTEXT = 4096
"""Tokens of context where none are asked for; a model's own limit may need gigabytes."""

TEXTS_A_REQUEST = 256
"""Texts tokenised at once."""

MOST_SEED = 2**32 - 2
"""llama.cpp takes the number after it for a wish to draw another seed each time."""


class ContextFullError(ModelError):
    """A prompt is longer than the context the model was loaded with."""


class LlamaCpp:
    """A GGUF file loaded in llama.cpp, with its own tokenizer and template, in a process of its own.

    Everything is greedy unless a temperature is given, and then drawn from a given seed, so two runs with equal
    threads give equal answers. The log is silent. Whatever the file
    makes llama.cpp do, this process goes on; text goes through pipes, never through a proxy.

    Args:
        path: the file.
        threads: CPU threads.
        context: tokens a prompt and its answer may have; 0 for the model's own, at most 4096.
        exact: keep keys, values and their sums in fp32 instead of llama.cpp's usual fp16.
        adapters: LoRA files loaded with the model and put on it at their scales, which `adapt` changes.

    Raises:
        ModelError: if the file or an adapter is damaged, an adapter is of another base, or llama.cpp refuses the file
            or dies of it.
        MissingExtraError: if `xllamacpp` or `gguf` is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context: int = 0,
        exact: bool = False,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        file = read_gguf(path)
        self.path, self.metadata = path, file.metadata
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ModelError("the file names no architecture", where=path, hint="export it again")
        own = _number(self.metadata.get(f"{architecture}.context_length", MAX_CONTEXT), path)
        self.context = context or min(own, MAX_CONTEXT)
        tokens = file.arrays.get("tokenizer.ggml.tokens")
        for adapter in adapters:
            check_adapter(adapter, file)
        self.adapters, self.scales = tuple(adapters), [adapter.scale for adapter in adapters]
        self._process = Process(
            path,
            {
                "threads": threads,
                "context": self.context,
                "end": _number(self.metadata.get("tokenizer.ggml.eos_token_id", 0), path),
                "vocabulary": tokens.count if tokens else 0,
                "exact": exact,
                "adapters": [(str(one.path.absolute()), one.scale) for one in adapters],
            },
        )

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process(self) -> Process:
        """The process that holds the model."""
        return self._process

    @property
    def peak_memory_bytes(self) -> int:
        """Greatest resident memory of the process that holds the model, so far."""
        return int(self._ask("peak_memory"))

    def close(self) -> None:
        """End the process and free the model; safe to call twice."""
        self._process.close()

    def adapt(self, scales: Sequence[float]) -> None:
        """Change the scales of the loaded adapters; the model is not loaded again.

        Args:
            scales: one for each, in their order; 0 puts it off.

        Cost: llama.cpp forgets the keys and values of the prompt before: the next request reads its prompt anew.
        """
        if len(scales) != len(self.adapters):
            raise ModelError(f"{len(scales)} scales for {len(self.adapters)} adapters", where=self.path)
        self._ask("adapt", scales=list(scales))
        self.scales = list(scales)

    def tokenise(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids llama.cpp makes of a text.

        Args:
            text: any text; names of special tokens in it become those tokens.
            special: add the start and end tokens the file asks for.
        """
        return self.tokenise_all([text], special=special)[0]

    def tokenise_all(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Return the ids of many texts, as `tokenise` does; without special tokens some hundreds go in one request."""
        found: list[list[int]] = []
        for start in range(0, len(texts), TEXTS_A_REQUEST):
            part = list(texts[start : start + TEXTS_A_REQUEST])
            found += self._ask("tokenise", texts=part, special=special)
        return found

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt the file's chat template makes of messages, without a start token it adds itself.

        Raises:
            ModelError: if the file has no template, or the template refuses the messages.
        """
        self._need_template()
        return str(self._ask("render", messages=list(messages)))

    def generate(self, prompt: str | Sequence[int], max_new_tokens: int) -> str:
        """Return the most likely continuation, up to an end token or `max_new_tokens`.

        Args:
            prompt: a text, to which the file's start token is added if it asks for one, or ids taken as they are.
            max_new_tokens: at least 1.
        """
        given = prompt if isinstance(prompt, str) else list(prompt)
        tokens = self.context + max_new_tokens
        return str(self._ask("generate", tokens=tokens, prompt=given, most=max_new_tokens)["text"])

    def ends_at(self, token: int) -> bool:
        """Return whether an answer ends where the model chooses this token."""
        return bool(self._ask("ends", token=token))

    def log_probabilities(self, ids: Sequence[int], start: int) -> list[float]:
        """Return the log-probability of each token given all before it.

            result[t - start] = log softmax(logits(ids[:t]))[ids[t]],   t = start ... len(ids) - 1

        llama.cpp reports the probability of the token it chose, taken before any bias; so each token is
        forced by a bias, one request a position, the prefix coming from the cache.

        Args:
            ids: token ids, no longer than the context.
            start: first position scored, at least 1.

        Returns:
            len(ids) - start natural logarithms.

        Raises:
            ModelError: if the ids do not fit the context, or `start` is 0.
        Cost: one token's forward pass and about half a millisecond a position; a token that ends inside a UTF-8
            character needs a list of likely tokens, in the worst case the whole vocabulary.
        """
        if not start >= 1 or len(ids) > self.context:
            raise ModelError(
                f"{len(ids)} tokens from position {start} cannot be scored in {self.context} of context",
                where=self.path,
            )
        return list(self._ask("score", tokens=len(ids), ids=list(map(int, ids)), start=start))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0,
        seed: int = 0,
        on_text: Callable[[str], bool] | None = None,
    ) -> str:
        """Return the model's answer to a conversation, through the file's own template.

        Args:
            messages: `role` and `content` each.
            max_new_tokens: longest answer.
            temperature: at least 0; 0 for the most likely token each time.
            seed: what is drawn from above it, in [0, 2^32 - 1).
            on_text: called with each piece as it comes; returning True stops the answer.

        Raises:
            ModelError: if the file has no template.
            ContextFullError: if the conversation is longer than the context.
            Whatever `on_text` raises.
        """
        self._need_template()
        request = {
            "messages": list(messages),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        tokens = self.context + max_new_tokens
        return str(self._ask("chat", tokens=tokens, on_piece=on_text, request=request))

    def _need_template(self) -> None:
        if "tokenizer.chat_template" not in self.metadata:
            raise ModelError(
                "the file has no chat template, and llama.cpp would use one of its own",
                where=self.path,
                hint="export the model with a tokenizer that has a chat template",
            )

    def _ask(
        self,
        operation: str,
        *,
        tokens: int = 0,
        on_piece: Callable[[str], bool] | None = None,
        **request: Any,
    ) -> Any:
        try:
            return self._process.ask(operation, tokens=tokens, on_piece=on_piece, **request)
        except RefusedError as refused:
            full = refused.error.get("type") == "exceed_context_size_error"
            raise (ContextFullError if full else ModelError)(
                f"llama.cpp refused: {refused}", where=self.path
            ) from refused


def _number(value: Scalar, path: Path) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ModelError(f"the file counts {value!r} tokens", where=path, hint="export it again")
    return value
