"""llama.cpp in this process: tokenise, complete, chat and exact log-probabilities of one GGUF file."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgetune.core.errors import MissingExtraError, ModelError
from edgetune.export.gguf_file import read_metadata

MAX_CONTEXT = 4096
"""Tokens of context where none are asked for; a model's own limit may need gigabytes."""

FORCED = 1e6
"""A logit bias no other token can overcome."""

EVERY_TOKEN = 1_000_000
"""More tokens than any vocabulary has."""

LOOPBACK = "127.0.0.1"


def _xllamacpp() -> Any:
    """Return the optional library.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "deploy", "Running a GGUF file") from error
    return xllamacpp


class ContextFullError(ModelError):
    """A prompt is longer than the context the model was loaded with."""


class LlamaCpp:
    """A GGUF file loaded in llama.cpp, with its own tokenizer, template and HTTP server.

    Everything is greedy, so two runs with equal threads give equal answers. The log is silent. An
    OpenAI-compatible server listens on `address` as long as the object lives.

    Args:
        path: the file.
        threads: CPU threads.
        context: tokens a prompt and its answer may have; 0 for the model's own, at most 4096.
        host: interface the server listens on; loopback unless someone asks for more.
        port: its port, 0 for any free one.

    Raises:
        ModelError: if llama.cpp refuses the file or the port is taken.
        MissingExtraError: if `xllamacpp` or `gguf` is not installed.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, context: int = 0, host: str = LOOPBACK, port: int = 0
    ) -> None:
        library = _xllamacpp()
        self.path, self.metadata = path, read_metadata(path)
        own = int(self.metadata.get(f"{self.metadata['general.architecture']}.context_length", MAX_CONTEXT))
        self.context = context or min(own, MAX_CONTEXT)
        self._end = int(self.metadata.get("tokenizer.ggml.eos_token_id", 0))
        parameters = library.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel = self.context, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.verbosity, parameters.warmup, parameters.fit_params = 0, False, False
        # Prompts of former requests are not kept beside the one in the context.
        parameters.cache_ram_mib, parameters.port = 0, port
        if host != LOOPBACK:
            parameters.hostnames = [host]
        try:
            self._server: Any = library.Server(parameters)
        except RuntimeError as error:
            raise ModelError(
                "llama.cpp cannot load this file, or cannot listen on the port asked for",
                where=path,
                hint="export it again, or choose another port",
            ) from error
        _restore_signals()
        self.address: str = self._server.listening_address
        # A server that ends before its loop has started waits for it for ever; an answer proves that it has.
        self._complete({"prompt": [self._end], "n_predict": 1})

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and free the model; safe to call twice."""
        self._server = None

    def tokenise(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids llama.cpp makes of a text.

        Args:
            text: any text; names of special tokens in it become those tokens.
            special: add the start and end tokens the file asks for.
        """
        return list(self._post("/tokenize", {"content": text, "add_special": special})["tokens"])

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt the file's chat template makes of messages, without a start token it adds itself.

        Raises:
            ModelError: if the file has no template, or the template refuses the messages.
        """
        self._need_template()
        return str(self._post("/apply-template", {"messages": list(messages)})["prompt"])

    def generate(self, prompt: str | Sequence[int], max_new_tokens: int) -> str:
        """Return the most likely continuation, up to an end token or `max_new_tokens`.

        Args:
            prompt: a text, to which the file's start token is added if it asks for one, or ids taken as they are.
            max_new_tokens: at least 1.
        """
        given = prompt if isinstance(prompt, str) else list(prompt)
        return str(self._complete({"prompt": given, "n_predict": max_new_tokens})["text"])

    def log_probabilities(self, ids: Sequence[int], start: int) -> list[float]:
        """Return the log-probability of each token given all before it.

            result[t - start] = log softmax(logits(ids[:t]))[ids[t]],   t = start ... len(ids) - 1

        llama.cpp reports the probability of the token it chose, taken before any bias; so each token is
        forced by a bias, one request a position, the prefix coming from the cache. Only a token that ends
        inside a UTF-8 character needs the whole vocabulary to be sent.

        Args:
            ids: token ids, no longer than the context.
            start: first position scored, at least 1.

        Returns:
            len(ids) - start natural logarithms.

        Raises:
            ModelError: if the ids do not fit the context, or `start` is 0.
        Cost: one token's forward pass and about 1 ms a position.
        """
        if not start >= 1 or len(ids) > self.context:
            raise ModelError(
                f"{len(ids)} tokens from position {start} cannot be scored in {self.context} of context",
                where=self.path,
            )
        return [self._log_probability(list(ids[:t]), int(ids[t])) for t in range(start, len(ids))]

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 256,
        on_text: Callable[[str], bool] | None = None,
    ) -> str:
        """Return the model's answer to a conversation, through the file's own template.

        Args:
            messages: `role` and `content` each.
            max_new_tokens: longest answer.
            on_text: called with each piece as it comes; returning True stops the answer.

        Raises:
            ModelError: if the file has no template.
            ContextFullError: if the conversation is longer than the context.
            Whatever `on_text` raises.
        """
        self._need_template()
        stream = _Stream(on_text)
        request = {"messages": list(messages), "max_tokens": max_new_tokens, "temperature": 0, "stream": True}
        self._alive().handle_chat_completions(request, stream)
        if stream.raised is not None:
            raise stream.raised
        if stream.refusal is not None:
            raise self._failure(stream.refusal)
        return "".join(stream.pieces)

    def _log_probability(self, prefix: list[int], token: int) -> float:
        scored = self._scored(prefix, forced=token, count=1)
        if not scored:
            # A token that ends inside a UTF-8 character is withheld from the answer, so its probability is
            # read from the list of all of them, under a token that is whole: the end token.
            whole = self._scored(prefix, forced=self._end, count=EVERY_TOKEN)
            scored = whole[0]["top_logprobs"] if whole else []
        for entry in scored:
            if entry["id"] == token:
                return float(entry["logprob"])
        raise ModelError(f"llama.cpp did not score token {token}", where=self.path)

    def _scored(self, prefix: list[int], *, forced: int, count: int) -> list[dict[str, Any]]:
        """Return what llama.cpp says of a forced token, with the `count` most likely ones beside it."""
        request = {"prompt": prefix, "n_predict": 1, "n_probs": count, "logit_bias": [[forced, FORCED]]}
        return list((self._complete(request)["logprobs"] or {}).get("content", []))

    def _need_template(self) -> None:
        if "tokenizer.chat_template" not in self.metadata:
            raise ModelError(
                "the file has no chat template, and llama.cpp would use one of its own",
                where=self.path,
                hint="export the model with a tokenizer that has a chat template",
            )

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._alive().handle_completions(request | {"temperature": 0, "cache_prompt": True})
        if "choices" not in answer:
            raise self._failure(answer)
        found: dict[str, Any] = answer["choices"][0]
        return found

    def _alive(self) -> Any:
        if self._server is None:
            raise ModelError("the model was closed", where=self.path)
        return self._server

    def _post(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._alive()
        request = urllib.request.Request(
            self.address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._failure(json.load(error)) from error
        return found

    def _failure(self, answer: Any) -> ModelError:
        error = answer.get("error", answer)
        full = error.get("type") == "exceed_context_size_error"
        return (ContextFullError if full else ModelError)(
            f"llama.cpp refused: {error.get('message', error)}", where=self.path
        )


class _Stream:
    """Collect a streamed answer; no exception may pass through llama.cpp, so one is kept and the answer stopped."""

    def __init__(self, on_text: Callable[[str], bool] | None) -> None:
        self.on_text, self.pieces = on_text, list[str]()
        self.refusal: Any = None
        self.raised: BaseException | None = None

    def __call__(self, chunk: Any) -> bool:
        try:
            return self._receive(chunk)
        except BaseException as error:  # raised again by `chat`
            self.raised = error
            return True

    def _receive(self, chunk: Any) -> bool:
        if "choices" not in chunk:
            self.refusal = chunk
            return True
        piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
        if not piece:
            return False
        self.pieces.append(piece)
        return self.on_text is not None and self.on_text(piece)


def _restore_signals() -> None:
    """Give Ctrl-C and termination back to Python: xllamacpp's server takes both when it starts."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.getsignal(number))
