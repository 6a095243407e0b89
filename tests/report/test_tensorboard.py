"""Event files are read back by their format: records with checksums, and messages of protobuf."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError, MissingExtraError, OutputError
from edgetune.report.scalars import Point
from edgetune.report.tensorboard import TensorBoard

Board = Callable[[Path, Path], TensorBoard]
NAME = "events.out.tfevents."


@pytest.fixture
def board() -> Iterator[Board]:
    """Make what writes into a folder for a log; closed at the end."""
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    made: list[TensorBoard] = []

    def make(folder: Path, log: Path) -> TensorBoard:
        made.append(TensorBoard(folder, log))
        return made[-1]

    yield make
    for one in made:
        one.close()


def crc32c(data: bytes) -> int:
    """The checksum bit by bit, by its polynomial."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def messages(folder: Path) -> list[Any]:
    """Return the events of a folder's files, in the order of their names."""
    from tensorboardX.proto import event_pb2

    data, found = b"".join(file.read_bytes() for file in sorted(folder.glob("*tfevents*"))), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + size]
        assert data[8:12] == masked(data[:8])
        assert data[12 + size : 16 + size] == masked(body)
        found.append(event_pb2.Event.FromString(body))
        data = data[16 + size :]
    return found


def numbers(folder: Path) -> list[tuple[str, int, float, float]]:
    return [
        (value.tag, event.step, value.simple_value, event.wall_time)
        for event in messages(folder)
        for value in event.summary.value
    ]


def point(tag: str, step: int, value: float = 0.5) -> Point:
    return Point(tag, step, value, 1000.0 + step)


def test_numbers_are_read_back_with_their_steps_and_times(tmp_path: Path, board: Board) -> None:
    mine = board(tmp_path / "tensorboard", tmp_path / "events.jsonl")
    mine.rewrite([point("loss/train", 1, 2.5), point("rouge_l", 1, 30.25)])
    mine.append([point("loss/train", 2, float("inf"))])
    assert numbers(tmp_path / "tensorboard") == [
        ("loss/train", 1, 2.5, 1001.0),
        ("rouge_l", 1, 30.25, 1001.0),
        ("loss/train", 2, float("inf"), 1002.0),
    ]
    mine.close()


def test_a_file_begins_with_the_version_and_a_start_that_makes_readers_forget(
    tmp_path: Path, board: Board
) -> None:
    board(tmp_path, tmp_path / "events.jsonl").rewrite([point("a", 1)])
    version, start, *_ = messages(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (start.session_log.START, 0)


def test_what_is_appended_is_on_the_disk_before_the_file_is_closed(tmp_path: Path, board: Board) -> None:
    mine = board(tmp_path, tmp_path / "events.jsonl")
    mine.rewrite([])
    for step in range(1, 4):
        mine.append([point("a", step)])
        assert [step for _, step, _, _ in numbers(tmp_path)] == list(range(1, step + 1))


def test_writing_again_empties_the_file_before_and_removes_older_ones(tmp_path: Path, board: Board) -> None:
    mine = board(tmp_path, tmp_path / "events.jsonl")
    for last in range(1, 5):
        mine.rewrite([point("a", step) for step in range(1, last + 1)])
        assert [step for _, step, _, _ in numbers(tmp_path)] == list(range(1, last + 1))
    empty, full = sorted(tmp_path.iterdir())
    assert empty.stat().st_size == 0 < full.stat().st_size


def test_a_clock_that_went_back_does_not_give_an_earlier_name(tmp_path: Path, board: Board) -> None:
    mine = board(tmp_path, tmp_path / "events.jsonl")
    mine.rewrite([point("a", 1)])
    (first,) = tmp_path.iterdir()
    ahead = first.with_name(first.name.replace(first.name.split(".")[3], "8888888888888888888"))
    first.rename(ahead)
    again = board(tmp_path, tmp_path / "events.jsonl")
    again.rewrite([point("a", 1), point("a", 2)])
    _, second = sorted(tmp_path.iterdir())
    assert second.name.split(".")[3] == "8888888888888888889"
    assert [step for _, step, _, _ in numbers(tmp_path)] == [1, 2]


def test_a_moved_run_goes_on_in_its_folder(tmp_path: Path, board: Board) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    board(old / "tensorboard", old / "events.jsonl").rewrite([point("a", 1)])
    old.rename(new)
    board(new / "tensorboard", new / "events.jsonl").rewrite([point("a", 1), point("a", 2)])
    assert [step for _, step, _, _ in numbers(new / "tensorboard")] == [1, 2]


@pytest.mark.parametrize("other", [f"{NAME}1700000000.host", f"{NAME}1.edgetune-00000000"])
def test_files_of_another_run_are_refused_and_stay(tmp_path: Path, board: Board, other: str) -> None:
    (tmp_path / other).write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="another run"):
        board(tmp_path, tmp_path / "events.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == [other]


def test_two_runs_cannot_share_a_folder(tmp_path: Path, board: Board) -> None:
    board(tmp_path / "curves", tmp_path / "a" / "events.jsonl").rewrite([])
    with pytest.raises(ConfigError, match="another run"):
        board(tmp_path / "curves", tmp_path / "b" / "events.jsonl")


def test_nothing_is_made_before_there_is_something_to_write(tmp_path: Path, board: Board) -> None:
    board(tmp_path / "a" / "b", tmp_path / "events.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused_at_the_start(tmp_path: Path, board: Board) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        board(tmp_path / "file", tmp_path / "events.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_output_error(tmp_path: Path, board: Board) -> None:
    mine = board(tmp_path, tmp_path / "events.jsonl")
    mine.rewrite([])
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, mine._writer._writer.fileno())
    os.close(full)
    with pytest.raises(OutputError, match="No space"):
        mine.append([point("a", 1)])
    mine.close()


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[tensorboard\]"):
        TensorBoard(tmp_path, tmp_path / "events.jsonl")
