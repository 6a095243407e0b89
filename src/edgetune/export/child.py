"""llama.cpp in a process of its own, run as a script by `engine.py`: the standard library and xllamacpp, nothing else.

One JSON object a line. The first line in says what to load (see `_load`); the first line out is `{"ready": true}`.
Every `{"op": name, "number": n, "request": {...}}` is answered by one line with the same number and a `result` or an
`error`, a streamed one by lines with a `piece` before. `{"op": "stop", "number": n}` ends answer n early. The end of
standard input ends the process, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

SOCKET = "llama.sock"
"""Relative to the folder the process works in: the path of a socket may be no longer than 100 bytes."""

FORCED = 1e6
"""A logit bias no other token can overcome."""

BETWEEN = -1
"""Stands between the texts of one request: llama.cpp passes numbers in a text through as they are."""

FEW, GROWTH = 64, 16
"""Listed tokens at first, and how many times more at each further try."""

LARGEST_LOG = 1 << 20
"""Bytes that a file may make llama.cpp write to its log."""

UNLOAD_SECONDS = 5
"""How long a refused file may take to be let go of."""

Json = dict[str, Any]


class _Connection(http.client.HTTPConnection):
    """HTTP over the server's own socket, which no proxy and no other user can reach."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


class _Child:
    """A loaded file, and what can be asked of it.

    Args:
        order: the first line of the parent.
        out: where answers go.
    """

    def __init__(self, order: Json, out: BinaryIO) -> None:
        self._out, self._key, self._end = out, order["key"], int(order["end"])
        self._vocabulary = int(order["vocabulary"])
        self.adapt([scale for _, scale in order.get("adapters", ())])
        self.number = self.stopped = 0
        self._server = _load(order)
        # A server whose loop has not begun to turn cannot be ended; an answer proves that it has.
        self._complete({"prompt": [self._end], "n_predict": 1})

    def tell(self, message: Json) -> None:
        """Send one line about the present request."""
        self._out.write(json.dumps({"number": self.number, **message}).encode() + b"\n")
        self._out.flush()

    def answer(self, line: Json) -> None:
        """Do what one line asks for."""
        self.number = line["number"]
        try:
            self.tell({"result": OPERATIONS[line["op"]](self, **line["request"])})
        except _RefusedError as refused:
            self.tell({"error": refused.error})
        except Exception as error:
            self.tell({"error": {"message": f"{type(error).__name__}: {error}"}})

    def adapt(self, scales: list[float]) -> None:
        """Set the scales of the loaded adapters; keys and values under others are not used (llama.cpp issue 26207)."""
        lora = [{"id": place, "scale": scale} for place, scale in enumerate(scales)]
        self._lora, self._worn = {"lora": lora} if lora else {}, dict[str, Any]()

    def tokenise(self, texts: list[str], special: bool) -> list[list[int]]:
        content: list[str | int] = []
        for text in texts:
            content += [text, BETWEEN]
        if special:
            return [
                self._post("/tokenize", {"content": text, "add_special": True})["tokens"] for text in texts
            ]
        found: list[list[int]] = [[]]
        for token in self._post("/tokenize", {"content": content, "add_special": False})["tokens"]:
            if token == BETWEEN:
                found.append([])
            else:
                found[-1].append(token)
        return found[:-1]

    def render(self, messages: list[Json]) -> str:
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def generate(self, prompt: Any, most: int) -> Json:
        answer = self._complete({"prompt": prompt, "n_predict": most})
        return {"text": answer["text"], "ended": answer["finish_reason"] == "stop"}

    def ends(self, token: int) -> bool:
        request = {"prompt": [token], "n_predict": 2, "logit_bias": [[token, FORCED]]}
        return bool(self._complete(request)["finish_reason"] == "stop")

    def score(self, ids: list[int], start: int) -> list[float]:
        return [self._log_probability(ids[:t], ids[t]) for t in range(start, len(ids))]

    def chat(self, request: Json) -> str:
        pieces: list[str] = []
        refusals: list[Any] = []

        def receive(chunk: Json) -> bool:
            if "choices" not in chunk:
                refusals.append(chunk)
                return True
            piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            if piece:
                pieces.append(piece)
                self.tell({"piece": piece})
            return self.stopped == self.number

        self._server.handle_chat_completions(request | {"stream": True} | self._adapted(), receive)
        if refusals:
            raise _RefusedError(refusals[0])
        self._worn = self._lora
        return "".join(pieces)

    def peak_memory(self) -> int:
        """Return the greatest resident memory so far, bytes."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes where there is no /proc
        # The kernel hands ru_maxrss on to a program that a large process starts; this mark begins with the program.
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    def _log_probability(self, prefix: list[int], token: int) -> float:
        entry = _entry(self._listed(prefix, forced=token, count=1), token)
        # A token that ends inside a UTF-8 character is withheld from the answer, so its probability is read from a
        # list of likely ones, longer and longer, under a token that is whole: the end token.
        count = FEW
        while entry is None:
            listed = self._listed(prefix, forced=self._end, count=count)
            entry = _entry(listed[0]["top_logprobs"] if listed else [], token)
            if count > self._vocabulary and entry is None:
                raise _RefusedError({"message": f"token {token} was not scored"})
            count *= GROWTH
        if entry["logprob"] is None:  # JSON has no word for it
            raise _RefusedError(
                {"message": f"the probability of token {token} is no number: something overflows"}
            )
        return float(entry["logprob"])

    def _listed(self, prefix: list[int], *, forced: int, count: int) -> list[Json]:
        """Return what llama.cpp says of a forced token, with the `count` most likely ones beside it."""
        request = {"prompt": prefix, "n_predict": 1, "n_probs": count, "logit_bias": [[forced, FORCED]]}
        return list((self._complete(request)["logprobs"] or {}).get("content", []))

    def _complete(self, request: Json) -> Json:
        answer = self._server.handle_completions(request | {"temperature": 0} | self._adapted())
        if "choices" not in answer:
            raise _RefusedError(answer)
        self._worn = self._lora
        found: Json = answer["choices"][0]
        return found

    def _adapted(self) -> Json:
        return self._lora | {"cache_prompt": self._worn == self._lora}

    def _post(self, route: str, body: Json) -> Json:
        connection = _Connection("localhost")
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request("POST", route, json.dumps(body), headers)
            answer = connection.getresponse()
            found: Json = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise _RefusedError(found)
        return found


OPERATIONS: dict[str, Callable[..., Any]] = {
    "adapt": _Child.adapt,
    "tokenise": _Child.tokenise,
    "render": _Child.render,
    "generate": _Child.generate,
    "ends": _Child.ends,
    "score": _Child.score,
    "chat": _Child.chat,
    "peak_memory": _Child.peak_memory,
}
"""What a request may ask for."""


class _RefusedError(Exception):
    """llama.cpp answered with an error of its own."""

    def __init__(self, answer: Any) -> None:
        error = answer.get("error", answer) if isinstance(answer, dict) else answer
        self.error: Json = error if isinstance(error, dict) else {"message": str(error)}
        super().__init__(self.error)


def _entry(listed: list[Json], token: int) -> Json | None:
    return next((entry for entry in listed if entry["id"] == token), None)


def _load(order: Json) -> Any:
    """Start the server of one file; a load that exceeds its time is ended by the kernel, even without a parent."""
    sys.path.insert(0, order["library"])
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = order["file"]
    parameters.n_ctx, parameters.n_parallel = order["context"], 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = order["threads"]
    parameters.verbosity, parameters.warmup, parameters.fit_params = 1, False, False
    # Prompts of former requests are not kept beside the one in the context.
    parameters.cache_ram_mib = 0
    adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in order.get("adapters", ())]
    parameters.lora_adapters = adapters
    parameters.hostnames, parameters.api_keys = [SOCKET], [order["key"]]
    parameters.endpoint_slots = parameters.ui = False
    if order["exact"]:
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.flash_attn_type = off
    signal.alarm(order["load_seconds"])
    server = xllamacpp.Server(parameters)
    signal.alarm(0)
    # The server takes both signals for itself when it starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    return server


def _limit(order: Json) -> None:
    """Leave no core file, write no endless log, and take no more memory than the machine has beside the file."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, LARGEST_LOG),
        (resource.RLIMIT_AS, order["memory"]),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, hard))


def _listen(requests: queue.SimpleQueue[Json], child: _Child) -> None:
    for line in sys.stdin.buffer:
        request: Json = json.loads(line)
        if request["op"] == "stop":
            child.stopped = request["number"]
        else:
            requests.put(request)
    with contextlib.suppress(OSError):  # a parent that was killed cannot do it
        Path(SOCKET).unlink()
        Path.cwd().rmdir()
    os._exit(0)


def main() -> None:
    """Load a file and answer until standard input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    order: Json = json.loads(sys.stdin.buffer.readline())
    os.chdir(order["folder"])
    _limit(order)
    try:
        child = _Child(order, out)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        signal.alarm(UNLOAD_SECONDS)
        sys.exit(1)
    child.tell({"ready": True})
    requests: queue.SimpleQueue[Json] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, child), daemon=True).start()
    while True:
        child.answer(requests.get())


if __name__ == "__main__":
    main()
