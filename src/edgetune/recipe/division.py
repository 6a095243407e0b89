"""Which records of a source go to the devices, to the server's own sample, and to evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from edgetune.core.errors import ConfigError, DataError
from edgetune.core.keys import stream
from edgetune.data.corpus import device_records
from edgetune.data.holdout import Division as Apart
from edgetune.data.holdout import hold_out, same_texts, set_apart, text_of, together
from edgetune.data.manifest import Manifest, make_manifest
from edgetune.data.reading import Loaded, load_source
from edgetune.data.records import Record
from edgetune.models.embedded import EMBEDDED
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.sections import DataSection
from edgetune.recipe.sharing import spread

EMBEDDED_RECORDS = 1000
HELD_OUT, SAMPLE = 100, 64
"""How many records are held out and set aside where there are plenty and nobody said a number."""
FIFTH, TENTH = 5, 10
"""Of fewer records, one in so many."""
WORTH_SETTING_ASIDE = 8
"""Of a smaller sample the records are trained on as well."""


@dataclass(frozen=True, slots=True)
class Division:
    """Where the records of a source went.

    Args:
        records: those that the manifest's positions count.
        calibration: the server's own sample.
        manifest: who holds which record.
        copies: how many are nowhere, because their text is held out or in the sample.
        notes: sentences about all this, without a full stop.
    """

    records: list[Record]
    calibration: list[Record]
    manifest: Manifest
    copies: int
    notes: tuple[str, ...] = ()

    @property
    def held_out(self) -> list[Record]:
        """Records for evaluation."""
        return [self.records[index] for index in self.manifest.held_out]

    @property
    def shares(self) -> list[list[Record]]:
        """Records of every device."""
        return [[self.records[index] for index in share] for share in self.manifest.devices]


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Records before they are spread.

    Args:
        records: the devices' and those that are held out.
        apart: which are which.
        sample: the server's own.
        shared: the sample is of records that are trained on.
        copies: how many records are nowhere.
    """

    records: list[Record]
    apart: Apart
    sample: list[Record]
    shared: bool
    copies: int


def divide(recipe: Recipe, *, split: bool) -> Division:
    """Read the records of a recipe and say who gets which.

    Args:
        recipe: data, split, number of devices, seed.
        split: spread them over devices; see `recipe.prepare.prepare`.

    Raises:
        ConfigError, DataError: as the readers, the hold-out and the split.
    """
    data, seed = recipe.data, recipe.seed
    if split and data.test is not None and (data.held_out_category or data.source == EMBEDDED):
        raise _contradiction(data)
    loaded, test = _read(data, seed)
    if not split:
        found = _undivided(data, seed, loaded, test)
        manifest = make_manifest(found.records, found.apart, None, source=data.source, devices=0, seed=seed)
        return Division(found.records, found.sample, manifest, 0)
    found = _sorted(data, seed, loaded.records, test)
    sharing = spread(found.records, found.apart, recipe)
    said = _where(found, sharing.manifest, loaded, data)
    return Division(found.records, found.sample, sharing.manifest, found.copies, (*said, *sharing.notes))


def _contradiction(data: DataSection) -> ConfigError:
    if data.source == EMBEDDED:
        what, hint = "a test without anything to train on", "--train-data FILE"
    else:
        what, hint = "a test and a category to hold out", "leave out data.test or data.held_out_category"
    return ConfigError(what, where="data.test", hint=hint)


def _read(data: DataSection, seed: int) -> tuple[Loaded, list[Record] | None]:
    """Return all records of the source, of the embedded corpus as many as are wanted, and those of the test."""
    if data.source != EMBEDDED:
        loaded = load_source(data.source, columns=data.columns)
    else:
        sizes = (data.calibration or SAMPLE, data.records or EMBEDDED_RECORDS, data.held_out or HELD_OUT)
        records = device_records(sum(sizes), seed)
        loaded = Loaded(records, "the embedded corpus", len(records), 0)
    if data.test is None:
        return loaded, None
    return loaded, load_source(data.test, columns=data.columns, subset="test").records


def _sizes(data: DataSection) -> DataSection:
    """Say how many of the embedded corpus are set aside and held out, which is drawn as long as needed."""
    if data.source != EMBEDDED:
        return data
    sizes = {"calibration": data.calibration or SAMPLE, "held_out": data.held_out or HELD_OUT}
    return data.model_copy(update=sizes)


def _sorted(given: DataSection, seed: int, records: Sequence[Record], test: list[Record] | None) -> _Sorted:
    """Take the sample, then hold out.

    Raises:
        DataError: there are too few records for what somebody asked for.
    """
    data, embedded = _sizes(given), given.source == EMBEDDED
    order = list(range(len(records))) if embedded else _order(records, seed)
    tested = {text_of(record) for record in test or ()}
    ours = [index for index in order if text_of(records[index]) not in tested]
    category = None if embedded else data.held_out_category
    kept_back = [index for index in ours if category and records[index].category == category]
    free = [index for index in ours if not category or records[index].category != category]
    own, others, kept_back = _without_sample(data, records, free, kept_back)
    held_out = 0 if test is not None else _held_out_size(data, records, kept_back or others)
    if data.records is not None and not embedded:
        others = others[: data.records + (0 if kept_back else held_out)]
    left = [records[index] for index in (others if embedded else sorted(others + kept_back))]
    everything = [*left, *(test or ())]
    if test is not None and not left:
        what = f"nothing is left to train on: all {len(records):,} records are in the test too"
        raise DataError(what, where=data.test, hint="give other records with --train-data")
    if test is not None:
        apart = set_apart(everything, range(len(left), len(everything)))
    else:
        apart = hold_out(left, category=data.held_out_category, count=held_out, seed=seed)
    sample = own or _of_trained(everything, apart, seed)
    copies = len(records) - len(ours) + len(apart.copies) + _copies_of(own, records)
    return _Sorted(everything, apart, sample, not own, copies)


def _without_sample(
    data: DataSection, records: Sequence[Record], free: Sequence[int], kept_back: Sequence[int]
) -> tuple[list[Record], list[int], list[int]]:
    """Return the server's own sample and what is left; copies go with it, so that up-sampled data lose little.

    Raises:
        DataError: there are fewer records than somebody wants in the sample.
    """
    size = data.calibration
    if size is None:
        size = min(SAMPLE, len(free) // TENTH)
        size = size if size >= WORTH_SETTING_ASIDE else 0
    drawn = chain.from_iterable(together(records, free))
    own = list(chain.from_iterable(same_texts(records, drawn)))[:size]
    if len(own) < size:
        what = f"the server's own sample needs {size} records (data.calibration), there are {len(own)}"
        raise DataError(what, where=data.source, hint="lower data.calibration")
    texts = {text_of(records[index]) for index in own}
    talks = {records[index].conversation for index in own} - {""}

    def others(positions: Sequence[int]) -> list[int]:
        return [
            index
            for index in positions
            if records[index].conversation not in talks and text_of(records[index]) not in texts
        ]

    return [records[index] for index in own], others(free), others(kept_back)


def _held_out_size(data: DataSection, records: Sequence[Record], candidates: Sequence[int]) -> int:
    """Return how many records are held out: all of a category, a fifth of others, at most so many."""
    if data.held_out is not None:
        return data.held_out
    different = len(same_texts(records, candidates))
    if data.held_out_category is None:
        different = -(-different // FIFTH)
    return max(1, min(HELD_OUT, different))


def _of_trained(records: Sequence[Record], apart: Apart, seed: int) -> list[Record]:
    """Return a sample of what is trained on, for data of which nothing can be spared."""
    places = stream(seed, "sample").permutation(len(apart.train))[:SAMPLE]
    return [records[apart.train[int(place)]] for place in places]


def _copies_of(own: Sequence[Record], records: Sequence[Record]) -> int:
    """Return how many records are no part of a sample, but have a text of it or are of a conversation in it."""
    texts, talks = {text_of(record) for record in own}, {record.conversation for record in own} - {""}
    same = sum(record.conversation in talks or text_of(record) in texts for record in records)
    return same - len(own)


def _undivided(data: DataSection, seed: int, loaded: Loaded, test: list[Record] | None) -> _Sorted:
    """Return records, own sample and what is held out where nothing is trained.

    They are those of a run with these settings; where no run is possible, because the records are too few, nothing can
    have been trained on them, and all serve for both.
    """
    records = loaded.records
    try:
        if test is None or data.source != EMBEDDED:
            return _sorted(data, seed, records, test)
    except DataError:
        pass
    records = records if test is None else test
    order = _order(records, seed)
    different = [same[0] for same in same_texts(records, order)]
    sample = [records[index] for index in different[: data.calibration or SAMPLE]]
    if test is not None:
        apart = Apart((), tuple(range(len(test))))
    else:
        category = data.held_out_category
        of_category = sum(records[index].category == category for index in different)
        few = min(data.held_out or HELD_OUT, of_category or len(different))
        apart = hold_out(records, category=category, count=few, seed=seed, training=False)
    return _Sorted(records, apart, sample, True, 0)


def _order(records: Sequence[Record], seed: int) -> list[int]:
    return [int(index) for index in stream(seed, "records").permutation(len(records))]


def _where(found: _Sorted, manifest: Manifest, loaded: Loaded, data: DataSection) -> list[str]:
    """Say where the records went."""
    trained, devices = sum(map(len, manifest.devices)), len(manifest.devices)
    on = "one device" if devices == 1 else f"{devices:,} devices"
    of = f" (all of {data.test})" if data.test is not None else ""
    aside = "none" if found.shared else f"{len(found.sample):,}"
    said = [
        f"{len(loaded.records):,} records ({loaded.shape}): {trained:,} on {on}, {aside} set aside for calibration; "
        f"{len(manifest.held_out):,} held out{of}"
    ]
    if found.shared:
        said.append(
            f"too few records to set some aside: calibration takes {len(found.sample):,} of those that are trained on "
            "(data.calibration)"
        )
    if loaded.empty:
        said.append(f"{loaded.empty:,} of {loaded.rows:,} rows have no answer to train on and are left out")
    return said
