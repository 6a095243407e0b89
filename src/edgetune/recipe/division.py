"""Which records of a source go to the devices, to the server's own sample, and to evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from edgetune.core.errors import DataError
from edgetune.core.keys import stream
from edgetune.data.corpus import device_records
from edgetune.data.holdout import same_texts, text_of
from edgetune.data.manifest import Manifest, make_manifest
from edgetune.data.records import Record, load_records
from edgetune.data.split import DirichletByCategory, DirichletQuantity, Iid
from edgetune.models.embedded import EMBEDDED
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.sections import DataSection, SplitSection

EMBEDDED_RECORDS = 1000
Split = Iid | DirichletByCategory | DirichletQuantity
SPLITS: dict[str, Callable[[float], Split]] = {
    "dirichlet": DirichletByCategory,
    "quantity": DirichletQuantity,
    "iid": lambda alpha: Iid(),
}


@dataclass(frozen=True, slots=True)
class Division:
    """Where the records of a source went.

    Args:
        records: those that the manifest's positions count.
        calibration: the server's own sample.
        manifest: who holds which record.
        copies: how many are nowhere, because their text is held out or in the sample.
    """

    records: list[Record]
    calibration: list[Record]
    manifest: Manifest
    copies: int

    @property
    def held_out(self) -> list[Record]:
        """Records for evaluation."""
        return [self.records[index] for index in self.manifest.held_out]

    @property
    def shares(self) -> list[list[Record]]:
        """Records of every device."""
        return [[self.records[index] for index in share] for share in self.manifest.devices]


def divide(recipe: Recipe, *, split: bool) -> Division:
    """Read the records of a recipe and say who gets which.

    Args:
        recipe: data, split, number of devices, seed.
        split: spread them over devices; see `recipe.prepare.prepare`.

    Raises:
        ConfigError, DataError: as the readers, the hold-out and the split.
    """
    loaded = _source(recipe.data, recipe.seed)
    if not split:
        return Division(*_undivided(recipe.data, recipe.seed, loaded), copies=0)
    records, calibration = _records(recipe.data, recipe.seed, loaded)
    manifest = split_records(records, recipe.data, recipe.split, recipe.federation.devices, recipe.seed)
    sample = {text_of(record) for record in calibration}
    others = sum(text_of(record) in sample for record in loaded) - len(calibration)
    return Division(records, calibration, manifest, len(manifest.copies) + others)


def split_records(
    records: Sequence[Record], data: DataSection, split: SplitSection, devices: int, seed: int
) -> Manifest:
    """Hold records out and spread the rest over the devices."""
    return make_manifest(
        records,
        SPLITS[split.kind](split.alpha),
        source=data.source,
        devices=devices,
        seed=seed,
        minimum=split.minimum,
        category=data.held_out_category,
        count=data.held_out,
    )


def _undivided(
    data: DataSection, seed: int, loaded: Sequence[Record]
) -> tuple[list[Record], list[Record], Manifest]:
    """Return records, own sample and what is held out where nothing is trained.

    Both are those of a run with these settings; where no run is possible, because the records are too few, nothing can
    have been trained on them, and all serve for both.
    """

    def held_out(records: Sequence[Record], count: int) -> Manifest:
        category = data.held_out_category
        return make_manifest(
            records, None, source=data.source, devices=0, seed=seed, category=category, count=count
        )

    try:
        records, own = _records(data, seed, loaded)
        return records, own, held_out(records, data.held_out)
    except DataError:
        different = [same[0] for same in same_texts(loaded, _order(loaded, seed))]
        of_category = sum(loaded[index].category == data.held_out_category for index in different)
        few = min(data.held_out, of_category or len(different))
        return list(loaded), [loaded[i] for i in different[: data.calibration]], held_out(loaded, few)


def _source(data: DataSection, seed: int) -> list[Record]:
    """Return all records of the source; of the embedded corpus as many as are wanted."""
    if data.source == EMBEDDED:
        return device_records(data.calibration + (data.records or EMBEDDED_RECORDS) + data.held_out, seed)
    return load_records(data.source)


def _order(records: Sequence[Record], seed: int) -> list[int]:
    return [int(index) for index in stream(seed, "records").permutation(len(records))]


def _records(data: DataSection, seed: int, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Return the records to split (devices' and held out) and the server's own sample, of which they hold no copy.

    Copies of a record go with it into the sample, so that up-sampled data lose little.

    Args:
        data: the recipe's section.
        seed: of the run.
        records: what `_source` returns.

    Raises:
        DataError: there are fewer records than the sample needs.
    """
    embedded = data.source == EMBEDDED
    order = list(range(len(records))) if embedded else _order(records, seed)
    kept_back = [i for i in order if not embedded and records[i].category == data.held_out_category]
    kept = set(kept_back)
    free = [index for index in order if index not in kept]
    together = list(chain.from_iterable(same_texts(records, free)))
    own = together[: data.calibration]
    if len(own) < data.calibration:
        what = f"the server's own sample needs {data.calibration} records, there are {len(own)}"
        raise DataError(what, where=data.source, hint="lower data.calibration")
    texts = {text_of(records[index]) for index in own}
    others = [index for index in free if text_of(records[index]) not in texts]
    if embedded:
        return [records[index] for index in others], [records[index] for index in own]
    if data.records is not None:
        others = others[: data.records if kept_back else data.records + data.held_out]
    chosen = sorted(others + [index for index in kept_back if text_of(records[index]) not in texts])
    return [records[index] for index in chosen], [records[index] for index in own]
