"""What the commands on files refuse before they begin, and what a script gets of a chat."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.export.llama_cpp import LlamaCpp


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--port", "70000"], "no port 70000"),
        (["--port", "-1"], "no port -1"),
        (["--host", "0.0.0.0", "--no-api-key"], "without a key"),
        (["--api-key", "x", "--no-api-key"], "a key and no key"),
        (["--api-key", ""], "printable"),
        (["--host", "no.such.host.invalid"], "no interface"),
    ],
)
def test_a_server_that_would_listen_wrongly_is_refused(
    options: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["serve", str(tmp_path / "no such file"), *options]) == 2
    assert what in capsys.readouterr().err


def test_the_key_of_a_server_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGETUNE_API_KEY", "a\nb")
    assert execute(["serve", str(tmp_path / "no such file")]) == 2
    assert "printable" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["chat"], ["chat", "-p", "hi"], ["serve", "--port", "0"]])
def test_a_missing_file_a_folder_and_a_bad_file_are_told_apart(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\3\0\0\0")
    said = []
    for name, what in (
        ("none.gguf", "no such file"),
        ("out", "a folder, not a GGUF file"),
        ("text.gguf", "not a GGUF file"),
        ("torn.gguf", "not a readable GGUF file"),
    ):
        assert execute([*command, str(tmp_path / name)]) == 4
        said.append(capsys.readouterr().err)
        assert f"{name}: " in said[-1]
        assert what in said[-1]
        assert said[-1].count("\n") == 1
    assert len({line.replace(name, "") for line in said}) == 4


def test_the_model_of_a_run_is_meant_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.gguf").touch()
    assert execute(["chat", str(tmp_path)]) == 4
    assert f"did you mean {tmp_path / 'model.gguf'}?" in capsys.readouterr().err


def test_a_taken_port_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert execute(["serve", str(tmp_path / "none"), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"--port: port {port} of 127.0.0.1 is taken" in error


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a GGUF file."""
    from edgetune.export.gguf_file import write_gguf
    from edgetune.models.backbone import load_backbone

    backbone = load_backbone("embedded")
    file = tmp_path_factory.mktemp("chat") / "m.gguf"
    return write_gguf(file, backbone.model, backbone.tokenizer, quantised={})


def test_a_script_gets_the_answer_only(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlamaCpp(model) as llama:
        expected = llama.chat([{"role": "user", "content": "hello"}], max_new_tokens=7)
    assert expected
    common = ["chat", str(model), "--max-tokens", "7", "--threads", "1"]
    assert execute([*common, "-p", "hello"]) == 0
    assert capsys.readouterr() == (f"{expected}\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    assert execute([*common, "-p", "-"]) == 0
    assert capsys.readouterr() == (f"{expected}\n", "")


def test_several_files_answer_a_script_under_their_names(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LlamaCpp(model) as llama:
        expected = llama.chat([{"role": "user", "content": "hello"}], max_new_tokens=7)
    asked = ["chat", str(model), str(model), "--max-tokens", "7", "--threads", "1", "-p", "hello"]
    assert execute(asked) == 0
    assert capsys.readouterr() == (f"[m.gguf (1)] {expected}\n[m.gguf (2)] {expected}\n", "")


def test_lines_of_a_pipe_are_answered_without_prompts(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlamaCpp(model) as llama:
        expected = llama.chat([{"role": "user", "content": "hello"}], max_new_tokens=7)
    monkeypatch.setattr("sys.stdin", io.StringIO("\nhello\n"))
    assert execute(["chat", str(model), "--max-tokens", "7", "--threads", "1"]) == 0
    assert capsys.readouterr() == (f"{expected}\n\n", "")


def test_a_wrong_manner_names_the_option(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["chat", str(model), "--temperature", "-1"]) == 2
    assert "--temperature" in capsys.readouterr().err


def test_an_importance_matrix_has_every_matrix_of_the_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetune.core.gguf_read import read_tensors

    file = tmp_path / "i.gguf"
    assert execute(["imatrix", "embedded", "--calibration-tokens", "500", "--out", str(file)]) == 0
    said = capsys.readouterr().out
    tensors = dict(read_tensors(file))
    sums = {name for name in tensors if name.endswith(".in_sum2")}
    assert len(sums) == len(tensors) / 2
    assert f"{len(sums)} matrices" in said
    assert all((tensors[name] > 0).any() for name in sums)
    assert "blk.0.ffn_down.weight.in_sum2" in sums
