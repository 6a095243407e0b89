"""The server other programs reach: a key, no web pages, only what a chat needs."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from toys import byte_level, tiny_llama

from edgetune.core.errors import ConfigError, ModelError
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.serve import Address, new_key, running_server, serve

MESSAGES: Any = [{"role": "user", "content": "hi"}]
QUESTION = {"messages": MESSAGES, "max_tokens": 2}
KEY = "a key for tests"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("serve") / "m.gguf"
    return write_gguf(file, tiny_llama(), byte_level(), quantised={}, float_type="F32")


@pytest.fixture(scope="module")
def served(path: Path) -> Iterator[tuple[Address, LlamaCpp]]:
    with running_server(path, key=KEY) as (address, llama):
        yield address, llama


def port_of(address: Address) -> int:
    return int(address.url.removesuffix("/v1").rpartition(":")[2])


def ask(
    address: Address, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(address), timeout=60)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        text = answer.read()
        kind = answer.headers.get("Content-Type", "")
        return answer.status, dict(answer.headers), json.loads(text) if "json" in kind else text
    finally:
        connection.close()


def test_the_openai_client_talks_to_the_server(served: tuple[Address, LlamaCpp]) -> None:
    address, llama = served
    expected = llama.chat(MESSAGES, max_new_tokens=6)
    with openai.OpenAI(base_url=address.url, api_key=KEY, max_retries=0) as client:
        assert [model.object for model in client.models.list()] == ["model"]
        whole = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=6, temperature=0)
        assert whole.choices[0].message.content == expected
        with client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=6, temperature=0, stream=True
        ) as stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == expected
        assert len([piece for piece in pieces if piece]) > 1
        plain = client.completions.create(model="m", prompt="hi", max_tokens=4, temperature=0)
        assert plain.choices[0].text == llama.generate("hi", 4)


@pytest.mark.parametrize("key", ["", "another key", KEY[:-1], KEY + " ", "\u00e9"])
def test_no_other_key_is_accepted(served: tuple[Address, LlamaCpp], key: str) -> None:
    address, _ = served
    for method, path, body in (
        ("GET", "/v1/models", None),
        ("POST", "/v1/chat/completions", QUESTION),
        ("GET", "/slots", None),
    ):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        status, _, answer = ask(address, method, path, body, **headers)
        assert (status, answer["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", "/slots"),
        ("GET", "/props"),
        ("POST", "/props"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("GET", "/index.html"),
        ("POST", "/slots/0?action=save"),
        ("GET", "/lora-adapters"),
        ("POST", "/tokenize"),
        ("POST", "/completion"),
        ("GET", "/v1/../slots"),
        ("GET", "//slots"),
        ("GET", "/v1/models/"),
        ("GET", "/%73lots"),
    ],
)
def test_nothing_but_the_needed_routes_is_served(
    served: tuple[Address, LlamaCpp], method: str, route: str
) -> None:
    status, _, answer = ask(served[0], method, route, {}, Authorization=f"Bearer {KEY}")
    assert status == 404, answer


def test_a_wrong_method_is_refused(served: tuple[Address, LlamaCpp]) -> None:
    assert ask(served[0], "GET", "/v1/chat/completions", Authorization=f"Bearer {KEY}")[0] == 405


def test_web_pages_get_nothing_and_no_leave_to_read(served: tuple[Address, LlamaCpp]) -> None:
    address, _ = served
    for origin in ("http://evil.example", "null", address.url.removesuffix("/v1")):
        status, headers, _ = ask(
            address, "POST", "/v1/chat/completions", QUESTION, Origin=origin, Authorization=f"Bearer {KEY}"
        )
        assert status == 403
        assert not [name for name in headers if name.lower().startswith("access-control")]
        status, headers, _ = ask(address, "OPTIONS", "/v1/chat/completions", Origin=origin)
        assert status >= 400
        assert not [name for name in headers if name.lower().startswith("access-control")]


def test_another_name_for_this_machine_is_refused(served: tuple[Address, LlamaCpp]) -> None:
    """A page whose name is made to point here (DNS rebinding) sends its own name as the host."""
    address, _ = served
    for host, status in (
        ("evil.example", 403),
        (f"evil.example:{port_of(address)}", 403),
        ("", 403),
        ("localhost", 200),
        (f"127.0.0.1:{port_of(address)}", 200),
        ("[::1]:80", 200),
    ):
        assert ask(address, "GET", "/v1/models", Host=host, Authorization=f"Bearer {KEY}")[0] == status, host


def test_requests_without_an_honest_length_are_refused(served: tuple[Address, LlamaCpp]) -> None:
    address, _ = served
    for length, status in (("-1", 411), ("many", 411), (str(10**15), 413), ("9" * 5000, 413)):
        found = ask(
            address,
            "POST",
            "/v1/chat/completions",
            Content_Length=length,
            Authorization=f"Bearer {KEY}",
        )[0]
        assert found == status, length[:20]


def test_a_request_llama_cpp_refuses_comes_back_as_its_error(served: tuple[Address, LlamaCpp]) -> None:
    status, _, answer = ask(
        served[0], "POST", "/v1/chat/completions", {"messages": 7}, Authorization=f"Bearer {KEY}"
    )
    assert status == 400
    assert answer["error"]["message"]


def test_a_client_that_goes_away_does_not_stop_the_server(served: tuple[Address, LlamaCpp]) -> None:
    address, llama = served
    body = json.dumps({"messages": MESSAGES, "max_tokens": 200, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port_of(address))) as client:
        client.sendall(head.encode() + body)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert llama.generate("hi", 2)
    assert ask(address, "GET", "/health")[0] == 200


def test_without_a_key_only_this_machine_is_served(path: Path) -> None:
    with running_server(path, key=None) as (address, _):
        assert address.key is None
        assert ask(address, "GET", "/v1/models")[0] == 200
        assert ask(address, "GET", "/v1/models", Origin="http://evil.example")[0] == 403
        assert ask(address, "GET", "/slots")[0] == 404
    with pytest.raises(ConfigError, match="without a key"), running_server(path, host="0.0.0.0", key=None):
        pass


@pytest.mark.parametrize("port", [-1, 65536, 70000, 2**40])
def test_a_port_that_does_not_exist_is_refused_before_the_model_is_loaded(port: int) -> None:
    with (
        pytest.raises(ConfigError, match=f"no port {port}"),
        running_server(Path("no such file"), port=port, key=KEY),
    ):
        pass


def test_a_taken_port_and_a_foreign_host_are_refused_before_the_model_is_loaded(
    served: tuple[Address, LlamaCpp],
) -> None:
    none = Path("no such file")
    with (
        pytest.raises(ConfigError, match="is taken by another program"),
        running_server(none, port=port_of(served[0]), key=KEY),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="interface"),
        running_server(none, host="no.such.host.invalid", key=KEY),
    ):
        pass
    for key in ("", " x", "a\nb", "\u00fc"):
        with pytest.raises(ConfigError, match="printable"), running_server(none, key=key):
            pass


def test_keys_are_random_and_long() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 32


def test_serving_ends_when_asked(path: Path) -> None:
    done, addresses = threading.Event(), list[Address]()

    def announce(address: Address) -> None:
        addresses.append(address)
        done.set()

    serve(path, port=0, key=KEY, announce=announce, until=done)
    assert addresses[0].url.endswith("/v1")
    with pytest.raises(ConnectionRefusedError):
        ask(addresses[0], "GET", "/health")


def test_serving_ends_typed_when_llama_cpp_dies(path: Path) -> None:
    before = set(psutil.Process().children())

    def kill(address: Address) -> None:
        (child,) = set(psutil.Process().children()) - before
        child.kill()

    with pytest.raises(ModelError, match=r"m\.gguf: llama\.cpp died"):
        serve(path, port=0, key=KEY, announce=kill)
