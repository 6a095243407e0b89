from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.core.errors import DataError, DigestError, OutputError
from edgetune.data.holdout import hold_out, set_apart
from edgetune.data.manifest import Manifest, make_manifest, read_manifest
from edgetune.data.records import Record
from edgetune.data.split import SPLITS, DirichletByCategory, Iid

RECORDS = [Record(f"i{index}", "", "r", "abc"[index % 3]) for index in range(90)]


def made() -> Manifest:
    split = DirichletByCategory(0.5)
    apart = hold_out(RECORDS, category="b", count=5, seed=1)
    return make_manifest(RECORDS, apart, split, source="toy", devices=4, seed=1, minimum=3)


def test_positions_are_those_of_the_full_list() -> None:
    manifest = made()
    assert len(manifest.held_out) == 5
    assert all(RECORDS[index].category == "b" for index in manifest.held_out)
    held = [index for device in manifest.devices for index in device]
    assert sorted(held) == [index for index in range(90) if index % 3 != 1]
    for device, counts in zip(manifest.devices, manifest.categories, strict=True):
        assert sum(counts.values()) == len(device) >= 3
        assert counts == {
            name: sum(RECORDS[index].category == name for index in device) for name in sorted(counts)
        }


def test_copies_of_held_out_records_are_listed_and_held_by_nobody(tmp_path: Path) -> None:
    doubled = RECORDS + RECORDS
    manifest = make_manifest(
        doubled, hold_out(doubled, count=5, seed=1), Iid(), source="toy", devices=4, seed=1
    )
    held = [index for device in manifest.devices for index in device]
    assert sorted(manifest.copies) == sorted((index + 90) % 180 for index in manifest.held_out)
    assert sorted([*held, *manifest.held_out, *manifest.copies]) == list(range(180))
    manifest.write(tmp_path / "m.json")
    assert read_manifest(tmp_path / "m.json", doubled) == manifest


def test_a_manifest_without_devices_holds_out_what_one_with_devices_does() -> None:
    apart = hold_out(RECORDS, count=5, seed=1)
    undivided = make_manifest(RECORDS, apart, None, source="toy", devices=4, seed=1)
    divided = make_manifest(RECORDS, apart, Iid(), source="toy", devices=4, seed=1)
    assert (undivided.devices, undivided.held_out) == ((), divided.held_out)


def test_a_conversation_stays_on_one_device_and_a_given_test_apart() -> None:
    talks = [Record(f"q{n}", "", "r", "", conversation=f"t{n % 20}") for n in range(100)]
    apart = set_apart(talks, [0, 1, 20])
    for split in (Iid(), DirichletByCategory(0.5)):
        manifest = make_manifest(talks, apart, split, source="toy", devices=4, seed=1, minimum=7)
        assert manifest.held_out == (0, 1, 20)
        owners = [{talks[index].conversation for index in device} for device in manifest.devices]
        assert sum(map(len, owners)) == len(set().union(*owners)) == 18
        assert all(len(device) >= 7 for device in manifest.devices)
        assert sorted(manifest.copies) == sorted({n for n in range(100) if n % 20 in (0, 1)} - {0, 1, 20})


def test_a_manifest_of_before_copies_were_listed_is_read(tmp_path: Path) -> None:
    made().write(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    assert content.pop("copies") == []
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path / "m.json", RECORDS) == made()


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = made()
    manifest.write(tmp_path / "deep" / "manifest.json")
    assert read_manifest(tmp_path / "deep" / "manifest.json") == manifest
    assert read_manifest(tmp_path / "deep" / "manifest.json", RECORDS) == manifest
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["manifest.json"]


def test_a_manifest_says_how_to_repeat_the_split() -> None:
    manifest = made()
    assert SPLITS[manifest.split](**manifest.parameters) == DirichletByCategory(0.5)
    assert (manifest.split, manifest.parameters, manifest.seed) == ("dirichlet-category", {"alpha": 0.5}, 1)
    assert (
        make_manifest(
            RECORDS, hold_out(RECORDS, count=1, seed=0), Iid(), source="toy", devices=2, seed=0
        ).parameters
        == {}
    )


def test_the_identity_is_of_records_and_of_who_holds_which() -> None:
    manifest = made()
    assert manifest.identity == made().identity
    swapped = manifest.devices[::-1]
    for other in (
        replace(manifest, devices=swapped),
        replace(manifest, held_out=manifest.held_out[1:]),
        replace(manifest, copies=(0,)),
        replace(manifest, digest="0"),
    ):
        assert other.identity != manifest.identity
    assert replace(manifest, source="elsewhere").identity == manifest.identity


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    made().write(tmp_path / "m.json")
    for changed in (RECORDS[:-1], RECORDS[::-1], [*RECORDS[:-1], replace(RECORDS[-1], response="other")]):
        with pytest.raises(DigestError, match="the data changed"):
            read_manifest(tmp_path / "m.json", changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "one"}, "seed"),
        ({"devices": [[0, "1"]]}, "devices"),
        ({"devices": [[0], [0]], "categories": [{}, {}]}, "held twice"),
        ({"copies": [0]}, "held twice"),
        ({"devices": [[-1]], "categories": [{}]}, "negative"),
        ({"categories": []}, "counts categories"),
        ({"devices": [[400]], "held_out": [], "categories": [{}]}, "beyond the 90"),
        ({"devices": [[0]], "held_out": [], "categories": [{"b": 1}]}, "category counts"),
    ],
)
def test_refuses_a_manifest_that_is_not_one(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "m.json"
    made().write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path, RECORDS)
    assert "m.json" in str(caught.value)


def test_refuses_missing_files_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_manifest(tmp_path / "absent.json")
    (tmp_path / "m.json").write_text('{"source": ')
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(tmp_path / "m.json")


def test_a_manifest_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        made().write(tmp_path / "file" / "m.json")
