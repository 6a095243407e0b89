"""Adapters beside a file: what is computed is that of a model into which they were merged, whatever was on before."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_chat import typing, user
from test_serve import KEY, ask
from toys import byte_level, tiny_llama

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, ModelError
from edgetune.export.adapter import write_adapter
from edgetune.export.chat import Manner, answer, chat
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.lora import Adapter, chosen
from edgetune.export.serve import Address, running_server

SHORT = Manner(max_new_tokens=8)
PROMPT = "The quick brown fox jumps over the lazy dog and then"
MESSAGES: Any = [user(PROMPT)]
STANDS = {(0.0, 0.0): "base", (1.0, 0.0): "a", (0.0, 1.0): "b", (1.0, 0.5): "both"}


def factors(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in tiny_llama().named_modules():
        if name.endswith(("q_proj", "v_proj", "up_proj")):
            outputs, inputs = layer.weight.shape
            shapes = ((outputs, 4), (4, inputs))
            found[name] = tuple(torch.randn(*shape, generator=drawn) * 0.3 for shape in shapes)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base, two adapters, and the models into which they were merged at the scales of `STANDS`."""
    folder = tmp_path_factory.mktemp("lora")
    made = {}
    for scales, name in STANDS.items():
        model = tiny_llama()
        with torch.no_grad():
            for seed, scale in enumerate(scales, start=1):
                for layer, (left, right) in factors(seed).items():
                    model.get_submodule(layer).weight += scale * left @ right  # type: ignore[operator]
        made[name] = write_gguf(folder / f"{name}.gguf", model, byte_level(), quantised={}, float_type="F32")
    for seed, name in ((1, "fleet"), (2, "mine")):
        made[name] = write_adapter(folder / f"{name}.gguf", tiny_llama().config, factors(seed), 1.0)
    return made


@pytest.fixture(scope="module")
def fresh(files: dict[str, Path]) -> dict[str, str]:
    """What a file says that was loaded with these scales and never had others."""
    found = {}
    for scales, name in STANDS.items():
        with LlamaCpp(files["base"], adapters=adapters(files, *scales)) as llama:
            found[name] = llama.chat(MESSAGES, max_new_tokens=8)
    assert len(set(found.values())) == len(STANDS), "adapters that change no answer would prove nothing"
    return found


def adapters(files: dict[str, Path], *scales: float) -> list[Adapter]:
    return [Adapter(files[name], scale) for name, scale in zip(("fleet", "mine"), scales, strict=True)]


def test_swapped_adapters_answer_as_freshly_loaded_ones_whatever_was_on_before(
    files: dict[str, Path], fresh: dict[str, str]
) -> None:
    with LlamaCpp(files["base"], adapters=adapters(files, 1.0, 0.5)) as llama:
        assert llama.chat(MESSAGES, max_new_tokens=8) == fresh["both"]
        # Every change from any state to any other, each on a prompt that the cache holds from the state before.
        for first in STANDS:
            for second, name in STANDS.items():
                llama.adapt(first)
                llama.chat(MESSAGES, max_new_tokens=8)
                llama.adapt(second)
                assert llama.chat(MESSAGES, max_new_tokens=8) == fresh[name], (first, second)
        pid = llama.process._process.pid
        llama.adapt([0.0, 0.0])
        assert llama.process._process.pid == pid
        with pytest.raises(ModelError, match="1 scales for 2 adapters"):
            llama.adapt([1.0])


def test_log_probabilities_are_those_of_the_merged_models(files: dict[str, Path]) -> None:
    ids = byte_level()(PROMPT)["input_ids"]
    with LlamaCpp(files["base"], adapters=adapters(files, 1.0, 0.0), exact=True) as llama:
        for scales, name in STANDS.items():
            llama.adapt(scales)
            with LlamaCpp(files[name], exact=True) as alone:
                assert llama.log_probabilities(ids, 1) == pytest.approx(
                    alone.log_probabilities(ids, 1), abs=2e-3
                )


def test_a_conversation_changes_its_adapters(files: dict[str, Path], fresh: dict[str, str]) -> None:
    written: list[str] = []
    lines = (
        "/adapter", PROMPT, "/reset", "/adapter off", PROMPT, "/reset", "/adapter fleet mine.gguf:0.5", PROMPT,
        "/reset", "/adapter nobody", PROMPT, "/reset", "/adapter mine:1e9", "/adapter mine", PROMPT, "/exit",
    )  # fmt: skip
    (messages,) = chat(
        [files["base"]],
        read=typing(*lines),
        write=written.append,
        manner=SHORT,
        adapters=adapters(files, 1.0, 0.0),
    )
    shown = "".join(written)
    assert shown.startswith("  fleet.gguf  1\n  mine.gguf  off\n")
    places = [shown.index(fresh[name]) for name in ("a", "base", "both")]
    assert places == sorted(places)
    assert shown.count(fresh["both"]) == 2, "a wrong name changes nothing"
    assert "no adapter of that name is loaded" in shown
    assert "fleet.gguf, mine.gguf" in shown
    assert "1e+09 is not in" in shown
    assert messages == [user(PROMPT), {"role": "assistant", "content": fresh["b"]}]


def test_what_was_said_stays_when_adapters_change(files: dict[str, Path]) -> None:
    (messages,) = chat(
        [files["base"]],
        read=typing("hello", "/adapter off", "there", "/exit"),
        write=lambda piece: None,
        manner=SHORT,
        adapters=adapters(files, 1.0, 0.0),
    )
    with LlamaCpp(files["base"]) as llama:
        assert messages[3]["content"] == llama.chat(messages[:3], max_new_tokens=8)


def test_compared_files_wear_the_same_adapters(files: dict[str, Path], fresh: dict[str, str]) -> None:
    talks = chat(
        [files["base"], files["a"]],
        read=typing("/adapter mine", PROMPT, "/exit"),
        write=lambda piece: None,
        manner=SHORT,
        adapters=adapters(files, 1.0, 0.0),
    )
    assert talks[0][1]["content"] == fresh["b"]
    with LlamaCpp(files["a"], adapters=adapters(files, 0.0, 1.0)) as llama:
        assert talks[1][1]["content"] == llama.chat(MESSAGES, max_new_tokens=8)


def test_one_answer_with_an_adapter(files: dict[str, Path], fresh: dict[str, str]) -> None:
    assert answer(files["base"], PROMPT, manner=SHORT, adapters=adapters(files, 0.0, 1.0)) == fresh["b"]


def test_without_adapters_the_command_says_how_to_load_one(files: dict[str, Path]) -> None:
    written: list[str] = []
    chat([files["base"]], read=typing("/adapter", "/adapter x", "/exit"), write=written.append)
    assert "--adapter FILE loads one" in "".join(written)
    assert "no adapter of that name is loaded" in "".join(written)


@pytest.mark.parametrize(
    ("words", "scales"),
    [
        ("off", [0.0, 0.0]),
        ("fleet", [0.5, 0.0]),
        ("mine", [0.0, 1.0]),  # loaded off, named on
        ("mine.gguf:-2 fleet:0", [0.0, -2.0]),
    ],
)
def test_words_name_scales(words: str, scales: list[float]) -> None:
    loaded = [Adapter(Path("x/fleet.gguf"), 0.5), Adapter(Path("x/mine.gguf"), 0.0)]
    assert chosen(words.split(), loaded) == scales


@pytest.mark.parametrize(
    "words", ["fleet fleet.gguf", "off mine", "x/fleet", "mine:nan", "mine:101", "mine:", ":1"]
)
def test_words_that_name_nothing_are_refused(words: str) -> None:
    loaded = [Adapter(Path("x/fleet.gguf"), 0.5), Adapter(Path("x/mine.gguf"), 0.0)]
    with pytest.raises(ConfigError):
        chosen(words.split(), loaded)


def test_a_file_and_its_scale_are_told_apart(tmp_path: Path) -> None:
    plain, odd = tmp_path / "a.gguf", tmp_path / "a.gguf:2"
    assert Adapter.of(f"{plain}:0.25") == Adapter(plain, 0.25)
    assert Adapter.of(str(odd)) == Adapter(plain, 2.0)
    odd.touch()
    assert Adapter.of(str(odd)) == Adapter(odd)
    assert Adapter.of("c:/x.gguf") == Adapter(Path("c:/x.gguf"))
    for scale in ("nan", "inf", "-1e9"):
        with pytest.raises(ConfigError, match="is not in"):
            Adapter.of(f"{plain}:{scale}")


def wrong(files: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Path, str]]:
    yield files["a"], "no LoRA adapter"
    yield tmp_path / "none.gguf", "no such file"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["fleet"].read_bytes()[:-100])
    yield cut, "lies outside the file"
    wide = {name: (left, torch.ones(4, right.shape[1] + 1)) for name, (left, right) in factors(1).items()}
    yield write_adapter(tmp_path / "wide.gguf", tiny_llama().config, wide, 1.0), "another base"
    deep = {"model.layers.7.mlp.up_proj": factors(1)["model.layers.0.mlp.up_proj"]}
    yield write_adapter(tmp_path / "deep.gguf", tiny_llama().config, deep, 1.0), "another base"
    data = (
        files["fleet"]
        .read_bytes()
        .replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00qwen2")
    )
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(data)
    yield foreign, "an adapter of a qwen2 cannot go on a llama"


def test_what_is_no_adapter_of_this_base_is_refused_before_anything_is_loaded(
    files: dict[str, Path], tmp_path: Path
) -> None:
    for path, said in wrong(files, tmp_path):
        with pytest.raises(ModelError, match=said) as error:
            LlamaCpp(files["base"], adapters=[Adapter(path)])
        assert error.value.where == path or str(path) in str(error.value)


def test_the_commands_refuse_what_is_no_adapter(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(files["base"])
    for command in (["chat", base, "-p", "hi"], ["serve", base, "--port", "0"]):
        assert execute([*command, "--adapter", str(files["a"])]) == 4
        assert "no LoRA adapter" in capsys.readouterr().err
        assert execute([*command, "--adapter", f"{files['fleet']}:1e9"]) == 2
        assert "is not in" in capsys.readouterr().err
    assert execute(["chat", base, "-p", "hi", "--max-tokens", "2", "--adapter", f"{files['fleet']}:0.5"]) == 0


@pytest.fixture(scope="module")
def served(files: dict[str, Path]) -> Iterator[Address]:
    with running_server(files["base"], key=KEY, adapters=adapters(files, 1.0, 0.0)) as (address, _):
        yield address


def said(address: Address, **more: Any) -> str:
    body = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0} | more
    status, _, found = ask(address, "POST", "/v1/chat/completions", body, Authorization=f"Bearer {KEY}")
    assert status == 200, found
    return str(found["choices"][0]["message"]["content"])


def put(address: Address, body: Any, key: str = KEY, **headers: str) -> tuple[int, Any]:
    status, _, found = ask(address, "POST", "/lora-adapters", body, Authorization=f"Bearer {key}", **headers)
    return status, found


def test_a_server_changes_adapters_while_it_runs(served: Address, fresh: dict[str, str]) -> None:
    for first in STANDS:
        for second, name in STANDS.items():
            for scales in (first, second):
                body = [{"id": place, "scale": scale} for place, scale in enumerate(scales) if scale]
                status, found = put(served, body)
                assert (status, [one["scale"] for one in found]) == (200, list(scales))
                answered = said(served)
            assert answered == fresh[name], (first, second)
    listed = ask(served, "GET", "/lora-adapters", Authorization=f"Bearer {KEY}")
    assert listed[0] == 200
    assert [(one["id"], one["path"]) for one in listed[2]] == [(0, "fleet.gguf"), (1, "mine.gguf")]


def test_one_request_takes_other_adapters_and_the_next_does_not(
    served: Address, fresh: dict[str, str]
) -> None:
    put(served, [{"id": 0, "scale": 1}])
    assert said(served) == fresh["a"]
    assert said(served, lora=[{"id": 1, "scale": 1.0}]) == fresh["b"]
    assert said(served) == fresh["a"]
    assert said(served, lora=[]) == fresh["a"]
    assert said(served, lora=[{"id": 0, "scale": 0.0}]) == fresh["base"]


MALFORMED: list[Any] = [
    {"id": 0, "scale": 1}, "x", 7, None, [1], [{"id": 0}], [{"scale": 1}], [{"id": "0", "scale": 1}],
    [{"id": 0, "scale": "1"}], [{"id": 2, "scale": 1}], [{"id": -1, "scale": 1}], [{"id": True, "scale": 1}],
    [{"id": 0, "scale": True}], [{"id": 0, "scale": 101}], [{"id": 0, "scale": float("nan")}],
    [{"id": 0, "scale": 1}, {"id": 0, "scale": 0}], [{"id": 2**40, "scale": 1}],
    [{"id": 0, "scale": 10**400}], [{"id": 10**400, "scale": 1}],
]  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED, ids=repr)
def test_what_names_no_adapters_is_refused_and_changes_nothing(served: Address, body: Any) -> None:
    assert put(served, [{"id": 1, "scale": 0.25}])[0] == 200
    status, found = put(served, body)
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")
    listed = ask(served, "GET", "/lora-adapters", Authorization=f"Bearer {KEY}")[2]
    assert [one["scale"] for one in listed] == [0.0, 0.25]


def refused(address: Address, lora: Any, route: str = "/v1/chat/completions") -> str:
    body = {"messages": MESSAGES, "prompt": "hi", "max_tokens": 2, "lora": lora}
    status, _, found = ask(address, "POST", route, body, Authorization=f"Bearer {KEY}")
    assert (status, found["error"]["type"]) == (400, "invalid_request_error"), lora
    return str(found["error"]["message"])


@pytest.mark.parametrize("lora", [one for one in MALFORMED if one is not None], ids=repr)
def test_one_request_that_names_no_adapters_is_refused_before_llama_cpp_turns_all_off(
    served: Address, fresh: dict[str, str], lora: Any
) -> None:
    put(served, [{"id": 0, "scale": 1}])
    for route in ("/v1/chat/completions", "/v1/completions"):
        assert "lora" in refused(served, lora, route) or "scale" in refused(served, lora, route)
    assert said(served) == fresh["a"]
    assert said(served, lora=None) == fresh["a"]


def test_a_server_without_adapters_refuses_to_answer_as_if_there_were_one(files: dict[str, Path]) -> None:
    with running_server(files["base"], key=KEY) as (address, _):
        plain = said(address)
        assert "no adapter 0 of 0" in refused(address, [{"id": 0, "scale": 1}])
        assert "is expected" in refused(address, "fleet")
        assert said(address, lora=[]) == said(address, lora=None) == plain


def test_adapters_ask_for_the_key_and_refuse_web_pages(served: Address) -> None:
    assert put(served, [], key="another")[0] == 401
    assert ask(served, "GET", "/lora-adapters")[0] == 401
    assert put(served, [], Origin="http://evil.example")[0] == 403
    assert put(served, [], Host="evil.example")[0] == 403
    assert ask(served, "DELETE", "/lora-adapters", Authorization=f"Bearer {KEY}")[0] >= 400


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"lora": "x", "prompt": "hi"}'])
def test_a_request_that_is_no_json_is_refused(served: Address, body: bytes) -> None:
    port = int(served.url.removesuffix("/v1").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {KEY}"})
    found = connection.getresponse()
    assert found.status in (400, 500), body[:20]
    assert json.loads(found.read())["error"]["message"]
    connection.close()
    assert ask(served, "GET", "/health")[0] == 200
