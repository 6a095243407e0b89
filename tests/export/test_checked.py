"""A file has its name only when it has been checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.errors import OutputError, VerifyError
from edgetune.core.export_events import Verified
from edgetune.export.checked import deploy, scratch_file


def verified(path: Path) -> Verified:
    return Verified(str(path), 0.0, 0.0, 1.0, 1.0, 0)


def test_a_checked_file_gets_its_name(tmp_path: Path) -> None:
    target, seen = tmp_path / "model.gguf", list[Path]()

    def check(path: Path) -> Verified:
        seen.append(path)
        assert path.read_text() == "new"
        assert not target.exists()
        assert path.parent == tmp_path
        assert path.name.startswith(".edgetune-model-")
        assert path.suffix == ".gguf"
        return verified(path)

    found = deploy(target, lambda path: path.write_text("new"), check)
    assert seen != [target]
    assert found.file == str(target)
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("older", [None, "old"])
def test_a_file_that_fails_its_check_leaves_nothing(older: str | None, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    if older is not None:
        target.write_text(older)

    def check(path: Path) -> Verified:
        raise VerifyError("wrong", where=f"{path}: blk.0", hint="try again")

    with pytest.raises(VerifyError) as caught:
        deploy(target, lambda path: path.write_text("new"), check)
    assert str(caught.value) == f"{target}: blk.0: wrong (try again)"
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if older is None else [older])


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        deploy(tmp_path / "model.gguf", write, verified)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_only_measured_never_has_the_name(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with scratch_file(target) as path:
        path.write_text("measured")
        assert path.name.startswith(".edgetune-model-")
        assert not target.exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), scratch_file(target) as path:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
