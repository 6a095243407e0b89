"""Update types, keys, events, atomic files and errors."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core import keys
from edgetune.core.errors import DataError, MissingExtraError, ModelError, OutputError, nearest
from edgetune.core.event_log import EventLog, read_events
from edgetune.core.events import RoundFinished, RunFinished, RunResumed
from edgetune.core.files import writable_folder, write_atomic, write_text_atomic
from edgetune.core.update import Dense, Estimate, Projected

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(-8, 8)), max_size=30)

COLLISION = ("layers.483.weight", "layers.89289.weight")


def projected(terms: list[tuple[int, float]]) -> Projected:
    return Projected(np.array([k for k, _ in terms], np.int64), np.array([c for _, c in terms], np.float32))


@settings(derandomize=True, deadline=None)
@given(pairs, pairs)
def test_merging_keeps_the_sum_and_the_order_of_first_appearance(first: list, second: list) -> None:
    merged = (projected(first).scaled(0.5) + projected(second)).merged()
    expected: dict[int, float] = {}
    for key, value in [*((k, c / 2) for k, c in first), *second]:
        expected[key] = expected.get(key, 0) + value
    assert dict(zip(merged.keys.tolist(), merged.coefficients.tolist(), strict=True)) == expected
    assert merged.keys.tolist() == list(expected)
    assert merged.coefficients.dtype == np.float32


def test_keys_and_coefficients_must_be_vectors_of_one_length() -> None:
    for shape in ((2,), (1, 1)):
        with pytest.raises(ValueError, match="one length"):
            Projected(np.zeros(1, np.int64), np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_what_is_not_a_number_of_float32_is_not_finite(bad: float) -> None:
    assert not Projected.of(1, bad).is_finite
    assert not Dense({"a": torch.zeros(2), "b": torch.tensor([0.0, bad])}).is_finite
    assert not Estimate(1.0, Projected.of(1, bad)).is_finite
    assert Estimate(1.0, Projected.none()).is_finite
    assert not Estimate(float("nan"), Projected.none()).is_finite


def test_named_streams_are_deterministic_and_pinned() -> None:
    assert keys.stream(1, "batches", 2).integers(0, 1000, 5).tolist() == [772, 302, 884, 609, 173]
    assert keys.stream(1, "batches", 2).random() == keys.stream(1, "batches", 2).random()
    others = [keys.stream(0, "batches", 2), keys.stream(1, "devices", 2), keys.stream(1, "batches", 3)]
    assert len({one.random() for one in [*others, keys.stream(1, "batches", 2)]}) == 4


def test_keys_of_seeds_differ_and_their_names_do_not_reveal_them() -> None:
    assert keys.pool_key(0) != keys.pool_key(1)
    assert len(keys.pool_key(0)) == keys.KEY_BYTES
    assert keys.key_id(keys.pool_key(0)) not in keys.pool_key(0).hex()


def test_two_names_with_one_direction_id_are_refused() -> None:
    # found by search: BLAKE2s of both names starts with the same four bytes
    first, second = COLLISION
    assert keys.tensor_id(first) == keys.tensor_id(second)
    keys.refuse_colliding_ids([first, "w"])
    with pytest.raises(ModelError, match=f"{first}.*{second}"):
        keys.refuse_colliding_ids([first, "w", second])


def test_an_event_log_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = RoundFinished(1, [0, 3], 2.5, float("nan"), [7], [8, 9], 0, "ab", 0.5, 10)
    log = EventLog(path)
    log(event)
    log(RunFinished(1.5))
    first, last = read_events(path)
    assert np.isnan(first.pop("loss"))
    wanted = {key: value for key, value in asdict(event).items() if key != "loss"}
    assert wanted == {key: first[key] for key in wanted}
    assert (first["event"], last["event"], last["seconds"]) == ("round", "run_finished", 1.5)


def test_a_last_line_cut_short_is_left_out_and_a_resumed_log_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b", "ti')
    assert [one["event"] for one in read_events(path)] == ["a"]
    EventLog(path)(RunResumed(1))
    assert [one["event"] for one in read_events(path)] == ["a", "run_resumed"]


def test_a_broken_middle_line_and_a_missing_log_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"eve\n{"event": "c"}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_events(path))
    with pytest.raises(DataError, match="no event log"):
        list(read_events(tmp_path / "none.jsonl"))
    for line in (b"[]", b"3", b'{"no": "event"}', b'{"event": 3}', b'{"event": null}'):
        path.write_bytes(line + b"\n" + b'{"event": "c"}\n')
        with pytest.raises(DataError, match="line 1 is no event"):
            list(read_events(path))
    for line in (b"\xff", b"[" * 100_000, b'{"event": ' + b"9" * 5000 + b"}"):
        path.write_bytes(line + b"\n" + b'{"event": "c"}\n')
        with pytest.raises(DataError, match="line 1 is not JSON"):
            list(read_events(path))
        path.write_bytes(b'{"event": "c"}\n' + line)
        assert [one["event"] for one in read_events(path)] == ["c"]


def test_an_event_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="event log"):
        EventLog(tmp_path / "missing" / "events.jsonl")(RunResumed(1))


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text_atomic(path, "old")
    write_text_atomic(path, "grüße")
    assert path.read_text(encoding="utf-8") == "grüße"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, code: int) -> None:
    path = tmp_path / "file.txt"
    write_text_atomic(path, "old")

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(code, "simulated")

    with pytest.raises(OutputError, match=r"file\.txt.*simulated"):
        write_atomic(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_while_flushing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_text_atomic(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_errors_that_are_not_the_disks_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_atomic(tmp_path / "file", lambda temporary: 1 // 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_work_starts(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "out") == tmp_path / "out"
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        writable_folder(tmp_path / "file")
    with pytest.raises(OutputError):
        writable_folder(Path("/proc/edgetune"))


def test_the_nearest_name_is_found_or_none() -> None:
    assert nearest("fedkseeed", ["mezo", "fedkseed"]) == "fedkseed"
    assert nearest("qqqq", ["mezo", "fedkseed"]) is None


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    error = MissingExtraError("peft", "peft", "LoRA")
    assert "pip install 'edgetune[peft]'" in str(error)
    assert error.exit_code == 8
    assert json.dumps(str(error))
