"""The folder of solved blocks: gone after the work, there for the next start if it is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.errors import OutputError
from edgetune.core.files import PARTIAL
from edgetune.run.deploy import solved_in


def test_it_goes_with_all_that_a_kill_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "blocks"
    folder.mkdir()
    (folder / f"{PARTIAL}block-1-abc.solved").write_bytes(b"cut off in the middle of a write")
    with solved_in(folder) as lent:
        (lent / "block-0.solved").write_bytes(b"solved")
    assert not folder.exists()


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), OutputError("the disk is full", where="there")])
def test_it_stays_where_the_work_is_cut_off(tmp_path: Path, cause: BaseException) -> None:
    def cut_off() -> None:
        with solved_in(tmp_path / "blocks") as lent:
            (lent / "block-0.solved").write_bytes(b"solved")
            raise cause

    with pytest.raises(type(cause)):
        cut_off()
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == ["block-0.solved"]


def test_files_of_somebody_else_do_not_fail_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with solved_in(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"
