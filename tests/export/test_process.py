"""llama.cpp in a process of its own: it dies alone, ends with its parent, and is reached through pipes only."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from toys import byte_level, tiny_llama

from edgetune.core.errors import ModelError
from edgetune.export import process
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp

ASK = [{"role": "user", "content": "a private record"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("process") / "m.gguf"
    return write_gguf(file, tiny_llama(), byte_level(), quantised={}, float_type="F32")


@pytest.fixture
def llama(path: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(path) as loaded:
        yield loaded


def child_of(llama: LlamaCpp) -> psutil.Process:
    return psutil.Process(llama.process._process.pid)


def text(word: str) -> bytes:
    return len(word).to_bytes(8, "little") + word.encode()


def test_an_abort_of_llama_cpp_is_one_typed_error(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    data = path.read_bytes()
    assert text("qu") in data
    broken.write_bytes(data.replace(text("qu"), text("ox"), 1))
    with pytest.raises(ModelError, match=r"broken\.gguf: llama\.cpp died.*SIGABRT.*GGML_ASSERT"):
        LlamaCpp(broken)


def test_what_llama_cpp_refuses_is_said_in_its_words(path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(path.read_bytes().replace(b"gpt-2", b"gpt-9", 1))
    with pytest.raises(ModelError, match=r"cannot load this file.*unknown pre-tokenizer type: 'gpt-9'"):
        LlamaCpp(odd)


def test_a_death_between_two_questions_is_one_typed_error(llama: LlamaCpp) -> None:
    assert llama.tokenise("hello")
    child_of(llama).kill()
    with pytest.raises(ModelError, match=r"m\.gguf: llama\.cpp died.*SIGKILL"):
        llama.tokenise("hello")
    with pytest.raises(ModelError, match="closed"):
        llama.tokenise("hello")


def test_a_process_that_does_not_answer_is_given_up(llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.05)
    stuck = child_of(llama)
    stuck.suspend()
    with pytest.raises(ModelError, match="did not answer"):
        llama.tokenise("hello")
    assert not stuck.is_running()


def test_a_load_that_takes_too_long_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel's alarm comes before the load has begun: the script stops itself where it would load.
    stopping = path.with_name("child.py")
    loading = "    server = xllamacpp.Server(parameters)\n"
    source = process.SCRIPT.read_text(encoding="utf-8")
    assert loading in source
    stopping.write_text(
        source.replace(loading, "    import time; time.sleep(600)\n" + loading), encoding="utf-8"
    )
    monkeypatch.setattr(process, "SCRIPT", stopping)
    monkeypatch.setattr(process, "LOAD_SECONDS", 1)
    with pytest.raises(ModelError, match="not load this file in time"):
        LlamaCpp(path)


def test_an_answer_that_was_interrupted_does_not_reach_the_next_question(llama: LlamaCpp) -> None:
    def interrupt(piece: str) -> bool:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            llama.chat(ASK, on_text=interrupt)
        assert llama.tokenise("hello", special=False) == byte_level()("hello").input_ids


def test_nothing_listens_on_the_network_and_nothing_goes_to_a_proxy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []

    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard.append(self.request.recv(65536))

    with socketserver.TCPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
        with LlamaCpp(path) as llama:
            assert llama.tokenise(ASK[0]["content"])
            assert llama.chat(ASK, max_new_tokens=4) == llama.generate(llama.render(ASK), 4)
            assert child_of(llama).net_connections(kind="inet") == []
        proxy.shutdown()
    assert heard == []


def test_the_socket_is_this_users_alone_and_is_removed(path: Path) -> None:
    with LlamaCpp(path) as llama:
        folder = llama.process.socket.parent
        assert llama.process.socket.is_socket()
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_a_long_temporary_folder_does_not_matter(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with LlamaCpp(path) as llama:
        assert llama.tokenise("hello")


PARENT = """
import os, sys, time
from pathlib import Path
from edgetune.export.llama_cpp import LlamaCpp
llama = LlamaCpp(Path(sys.argv[1]))
print(llama.process._process.pid, llama.process.socket.parent, flush=True)
time.sleep(600)
"""


def test_the_process_ends_with_a_parent_that_was_killed(path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(60)
    assert not Path(folder).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are read from /proc")
def test_the_process_leaves_no_core_file_and_has_a_memory_limit(llama: LlamaCpp) -> None:
    lines = Path(f"/proc/{child_of(llama).pid}/limits").read_text().splitlines()
    soft = {line[:25].strip(): line[26:].split()[0] for line in lines}
    assert soft["Max core file size"] == "0"
    assert soft["Max address space"] != "unlimited"


def test_ctrl_c_in_the_terminal_is_not_for_the_process(llama: LlamaCpp) -> None:
    assert os.getpgid(child_of(llama).pid) != os.getpgid(0)


def test_prompts_are_in_no_log_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("LLAMA_LOG_FILE", str(log))
    monkeypatch.setenv("LLAMA_ARG_LOG_FILE", str(log))
    with LlamaCpp(path) as llama:
        llama.chat(ASK, max_new_tokens=2)
    assert not log.exists()


def test_its_own_memory_is_measured(llama: LlamaCpp) -> None:
    resident = child_of(llama).memory_info().rss
    assert resident * 0.9 < llama.peak_memory_bytes < 2 * resident + (64 << 20)
    before = llama.peak_memory_bytes
    llama.tokenise("hello " * 200_000)
    assert llama.peak_memory_bytes > before


def test_what_a_file_makes_llama_cpp_say_is_one_short_printable_line(path: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    written = path.read_bytes()
    assert text("llama") in written
    odd.write_bytes(written.replace(text("llama"), text("\x1b[31m" + "x" * 5000), 1))
    with pytest.raises(ModelError) as caught:
        LlamaCpp(odd)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(tmp_path)) + 500
