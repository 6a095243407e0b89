"""How many devices hold the records of a run, and how unevenly: what was asked for, or what the records allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgetune.core.errors import DataError
from edgetune.data.holdout import Division, together
from edgetune.data.manifest import Manifest, Split, make_manifest
from edgetune.data.records import Record
from edgetune.data.split import DirichletByCategory, DirichletQuantity, Iid
from edgetune.recipe.recipe import Recipe

SPLITS: dict[str, Callable[[float], Split]] = {
    "dirichlet": DirichletByCategory,
    "quantity": DirichletQuantity,
    "iid": lambda alpha: Iid(),
}
DEVICES, MINIMUM = 20, 4
"""How many devices there are, and how many records each holds at least, where nobody said a number."""
FEW = 10
"""Times the least number: with a smaller share on average, uneven shares may be impossible and are not insisted on."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who holds which record.

    Args:
        manifest: the split.
        notes: sentences about what was not asked for, without a full stop.
    """

    manifest: Manifest
    notes: tuple[str, ...]


def spread(records: Sequence[Record], apart: Division, recipe: Recipe) -> Sharing:
    """Spread what is not held out over devices.

    Args:
        records: all records.
        apart: which of them are held out.
        recipe: split, number of devices, seed.

    Raises:
        ConfigError, DataError: what was asked for cannot be done with these records; names the settings.
    """
    units = len(together(records, apart.train))
    least = recipe.split.minimum or MINIMUM
    devices = recipe.federation.devices or max(1, min(DEVICES, units // least))
    minimum = recipe.split.minimum or max(1, min(MINIMUM, units // devices))
    notes = list[str]()
    if recipe.federation.devices is None and devices < DEVICES:
        notes.append(
            f"{devices} {'device' if devices == 1 else 'devices'}, not {DEVICES}: each holds at least {least} records "
            "(federation.devices, split.minimum)"
        )

    def shared(kind: str) -> Manifest:
        split = SPLITS[kind](recipe.split.alpha)
        return make_manifest(
            records,
            apart,
            split,
            source=recipe.data.source,
            devices=devices,
            seed=recipe.seed,
            minimum=minimum,
        )

    if recipe.split.kind != "auto":
        return Sharing(shared(recipe.split.kind), tuple(notes))
    kind = "dirichlet" if len({records[index].category for index in apart.train}) > 1 else "quantity"
    try:
        manifest = shared(kind)
    except DataError:
        if units >= FEW * minimum * devices:
            raise
        manifest = shared("iid")
        notes.append(
            f"too few records for uneven shares: all devices hold equally many (split.kind={kind} insists)"
        )
    else:
        if kind == "quantity" and devices > 1:
            notes.append(
                "no record has a category: devices differ in how many records they hold only "
                "(--columns category=COLUMN names one)"
            )
    return Sharing(manifest, tuple(notes))
