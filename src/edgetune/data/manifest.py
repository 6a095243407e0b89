"""The manifest: exactly which records each device held in a run, so that anyone can repeat the split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgetune.core.errors import DataError, DigestError
from edgetune.core.files import write_atomic
from edgetune.data.holdout import Division, together
from edgetune.data.records import Record, records_digest
from edgetune.data.split import DirichletByCategory, DirichletQuantity, Iid

Split = Iid | DirichletByCategory | DirichletQuantity


@dataclass(frozen=True, slots=True)
class Manifest:
    """A split, written out; all positions are positions in the full list of records.

    Args:
        source: where the records came from.
        digest: `records_digest` of all records.
        split: public name of the split, a key of `SPLITS`.
        parameters: the fields of the split.
        seed: the seed of the split and of the hold-out.
        minimum: the least number of records a device was allowed.
        devices: per device the positions of its records; disjoint.
        held_out: positions no device holds, for evaluation.
        categories: per device, category to number of records.
        copies: positions that are neither trained on nor evaluated: they have the text of one that is held out.
    """

    source: str
    digest: str
    split: str
    parameters: dict[str, float]
    seed: int
    minimum: int
    devices: tuple[tuple[int, ...], ...]
    held_out: tuple[int, ...]
    categories: tuple[dict[str, int], ...]
    copies: tuple[int, ...] = ()

    @property
    def identity(self) -> str:
        """SHA-256 over the records and who holds which: another version or library may draw another split."""
        held = repr((self.digest, self.devices, self.held_out, self.copies))
        return sha256(held.encode("ascii")).hexdigest()

    def write(self, path: Path) -> None:
        """Write the manifest as JSON, atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        write_atomic(path, lambda temporary: temporary.write_bytes(_FORMAT.dump_json(self, indent=1)))

    def check(self, records: Sequence[Record]) -> None:
        """Make sure that these are the records the manifest was made from.

        Raises:
            DigestError: they differ.
        """
        found = records_digest(records)
        if found != self.digest:
            raise DigestError(
                f"the data changed since the manifest was made: digest {found[:12]}, expected {self.digest[:12]}",
                where=self.source,
                hint="restore the data, or start a new run",
            )


def make_manifest(
    records: Sequence[Record],
    apart: Division,
    split: Split | None,
    *,
    source: str | Path,
    devices: int,
    seed: int,
    minimum: int = 1,
) -> Manifest:
    """Spread what is not held out over the devices, and write down who has what.

    Args:
        records: all records.
        apart: which of them are held out.
        split: how the others are spread; None for no device at all, where nothing is going to be trained.
        source: where the records came from, for the reader.
        devices: number of devices.
        seed: not negative.
        minimum: the least number of records a device may hold.

    Raises:
        ConfigError, DataError: as the split.
    """
    held = () if split is None else _spread(records, apart.train, split, devices, seed, minimum)
    return Manifest(
        source=str(source),
        digest=records_digest(records),
        split="" if split is None else split.name,
        parameters={} if split is None else asdict(split),
        seed=seed,
        minimum=minimum,
        devices=held,
        held_out=apart.held_out,
        categories=tuple(_counts(records, share) for share in held),
        copies=apart.copies,
    )


def _spread(
    records: Sequence[Record],
    train: Sequence[int],
    split: Split,
    devices: int,
    seed: int,
    minimum: int,
) -> tuple[tuple[int, ...], ...]:
    """Spread records over devices, those of one conversation to one."""
    units = together(records, train)
    labels = [records[unit[0]].category for unit in units]
    least = -(-minimum // min(map(len, units)))
    shares = split(labels, devices, seed=seed, minimum=least)
    return tuple(tuple(sorted(chain.from_iterable(units[place] for place in share))) for share in shares)


def read_manifest(path: Path, records: Sequence[Record] | None = None) -> Manifest:
    """Read a manifest and check that it is one.

    Args:
        path: the JSON file.
        records: the data at hand; where given, it must be the data of the manifest.

    Raises:
        DataError: no such file, not a manifest, or positions that repeat or lie outside.
        DigestError: the data changed.
    """
    try:
        manifest = _FORMAT.validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise DataError("cannot read the manifest", where=path, hint=error.strerror) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"not a manifest: {field}: {first['msg']}", where=path) from error
    positions = [*chain.from_iterable(manifest.devices), *manifest.held_out, *manifest.copies]
    if len(set(positions)) != len(positions) or min(positions, default=0) < 0:
        raise DataError("not a manifest: a record is held twice, or a position is negative", where=path)
    if len(manifest.categories) != len(manifest.devices):
        raise DataError("not a manifest: it counts categories of other devices than it lists", where=path)
    if records is not None:
        manifest.check(records)
        if max(positions, default=-1) >= len(records):
            raise DataError(f"not a manifest: a position beyond the {len(records)} records", where=path)
        if manifest.categories != tuple(_counts(records, share) for share in manifest.devices):
            raise DataError("not a manifest: its category counts are not those of its devices", where=path)
    return manifest


def _counts(records: Sequence[Record], share: Sequence[int]) -> dict[str, int]:
    return dict(sorted(Counter(records[index].category for index in share).items()))


_FORMAT = TypeAdapter(Manifest)
