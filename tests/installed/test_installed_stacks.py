from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from edgetune.core.errors import ConfigError, DigestError, ModelError, OutputError
from edgetune.core.files import locked
from edgetune.installed import store as stores
from edgetune.installed.install import change, opened, rollback
from edgetune.installed.making import held

Installed = Callable[..., Path]
Written = Callable[..., Path]


def everything(folder: Path) -> dict[str, str]:
    """Every file below a folder by its bytes."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = everything(folder)
    yield
    assert everything(folder) == before


def test_ledgers_are_stacked_swapped_and_rolled_back_to_identical_bytes(
    installed: Installed, ledger: Written
) -> None:
    file = installed()
    base = everything(file.parent)
    shared, ann, bob = (
        ledger(file="fed.ledger"),
        ledger(file="ann.ledger", seed=1),
        ledger(file="bob.ledger", seed=2),
    )
    change(file, [shared])
    one = file.read_bytes()
    change(file, [ann], add=True)
    two = file.read_bytes()
    assert [entry["name"] for entry in json.loads(held(file))["ledgers"]] == ["fed.ledger", "ann.ledger"]
    change(file, [shared, bob])
    three = file.read_bytes()
    assert len({one, two, three}) == 3
    change(file, [shared, ann])
    assert file.read_bytes() == two  # the order of changes leaves no trace: each is made from the base
    for expected in (three, two, one):
        rollback(file)
        assert file.read_bytes() == expected
    rollback(file)
    assert everything(file.parent) == base
    with pytest.raises(ConfigError, match="never changed"):
        rollback(file)


def test_a_file_goes_back_to_its_base_at_once(installed: Installed, ledger: Written) -> None:
    file = installed()
    base = everything(file.parent)
    change(file, [ledger()])
    change(file, [ledger(file="b.ledger", seed=1)], add=True)
    rollback(file, to_base=True)
    assert everything(file.parent) == base


def test_an_older_round_of_a_run_is_refused_unless_it_is_asked_for(
    installed: Installed, ledger: Written
) -> None:
    file = installed()
    new, old = ledger(run="r", round=5), ledger(file="old.ledger", run="r", round=4, seed=1)
    change(file, [new])
    with (
        nothing_changes(file.parent),
        pytest.raises(DigestError, match="has 4 rounds of its run, 5 are installed"),
    ):
        change(file, [old])
    change(file, [old], older=True)
    assert json.loads(held(file))["ledgers"][0]["round"] == 4


def test_a_foreign_ledger_changes_nothing(
    installed: Installed, save_tiny: Callable[..., Path], tmp_path: Path, ledger: Written
) -> None:
    from ledgers import make

    file = installed()
    foreign = make(tmp_path / "x.ledger", save_tiny("llama"))
    with nothing_changes(file.parent), pytest.raises(DigestError, match="belongs to base"):
        change(file, [foreign])
    change(file, [ledger()])
    with nothing_changes(file.parent), pytest.raises(DigestError, match="belongs to base"):
        change(file, [foreign], add=True)


def test_a_file_that_something_else_changed_is_left_alone(installed: Installed, ledger: Written) -> None:
    file, path = installed(), ledger()
    change(file, [path])
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with nothing_changes(file.parent), pytest.raises(DigestError, match="something else has changed it"):
        change(file, [path])


def test_two_do_not_change_one_file_at_a_time(installed: Installed, ledger: Written) -> None:
    file, path = installed(), ledger()
    with locked(file.parent), nothing_changes(file.parent), pytest.raises(OutputError, match="at work"):
        change(file, [path])


def test_a_folder_is_not_changed_in_place(save_tiny: Callable[..., Path], ledger: Written) -> None:
    with pytest.raises(ConfigError, match="--out FOLDER"):
        change(save_tiny("llama"), [ledger()])


def test_a_link_stays_a_link(installed: Installed, ledger: Written, tmp_path: Path) -> None:
    file = installed()
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    before = file.read_bytes()
    change(link, [ledger()])
    assert link.is_symlink()
    assert file.read_bytes() != before


class KilledError(BaseException):
    """Stands for a process that ends between two renames."""


@pytest.mark.parametrize("step", range(1, 5))
@pytest.mark.parametrize("undo", [False, True])
def test_a_kill_at_any_rename_leaves_the_old_file_or_the_new_one(
    installed: Installed, ledger: Written, monkeypatch: pytest.MonkeyPatch, step: int, undo: bool
) -> None:
    file, path, more = installed(), ledger(), ledger(file="b.ledger", seed=1)
    base = file.read_bytes()
    change(file, [path])
    old = file.read_bytes()
    change(file, [more], add=True)
    new = file.read_bytes()
    if not undo:
        rollback(file)
    count, real = 0, stores.place

    def place(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise KilledError
        real(source, target)

    monkeypatch.setattr(stores, "place", place)
    with pytest.raises(KilledError) if count_of_renames(undo) >= step else _none():
        rollback(file) if undo else change(file, [more], add=True)
    monkeypatch.setattr(stores, "place", real)
    assert file.read_bytes() in (old, new)
    with opened(file) as (
        store,
        _,
    ):  # finishes or drops what was announced, and checks the file against the record
        assert store.present is not None
        holds = len(store.present.ledgers)
    assert file.read_bytes() == (old if holds == 1 else new)
    rollback(file, to_base=True)
    assert file.read_bytes() == base
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def count_of_renames(undo: bool) -> int:
    """Of the file, and of its record where one is added."""
    return 1 if undo else 2


@contextmanager
def _none() -> Iterator[None]:
    yield


def test_a_damaged_record_is_refused(installed: Installed, ledger: Written) -> None:
    file, path = installed(), ledger()
    change(file, [path])
    record = next(file.parent.glob("*.edgetune/0001.json"))
    record.write_text(record.read_text()[:-20])
    with nothing_changes(file.parent), pytest.raises(ModelError, match="not a manifest"):
        rollback(file)
