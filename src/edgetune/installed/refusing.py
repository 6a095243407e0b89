"""Which updates a device does not take: of strangers, and of yesterday."""

from __future__ import annotations

from pathlib import Path

from edgetune.core.errors import ConfigError, DigestError, ModelError
from edgetune.installed.fetching import Source
from edgetune.installed.manifest import Manifest, canonical
from edgetune.installed.signing import check_signature

OLDER = "edgetune rollback goes back; --older takes an older one all the same"


def check_trust(manifest: Manifest, trusted: str | None, unsigned: bool, source: Source) -> None:
    """Make sure that who is trusted has signed a manifest.

    Raises:
        ConfigError: if nobody is trusted, and an unsigned manifest was not asked for.
        DigestError: as `check_signature`.
    """
    if trusted is not None:
        check_signature(manifest, trusted, source.address)
    elif not unsigned:
        raise ConfigError(
            "no key is trusted to sign updates of this file",
            where=source.address,
            hint="--key FILE.pub of who signs them, or --unsigned",
        )


def refuse_record(manifest: Manifest, where: str) -> None:
    """Refuse what says of an installed file what it holds: it could not be kept as the record of another.

    Raises:
        ModelError: if it holds the manifest that it came from.
    """
    if manifest.signed is not None:
        raise ModelError(
            "this is the record of an installed file, not an update",
            where=where,
            hint="edgetune manifest BASE LEDGER ... --out FILE makes one",
        )


def refuse_lower_serial(manifest: Manifest, present: Manifest | None, where: str) -> None:
    """Refuse an update that comes before the installed one, or that shares its number and is another one.

    Raises:
        DigestError: naming both numbers.
    """
    signed = present.signed if present is not None else None
    if signed is None:
        return
    installed = int(signed["serial"])
    if manifest.serial < installed:
        what = f"this update has the serial number {manifest.serial}, {installed} is installed"
        raise DigestError(what, where=where, hint=OLDER)
    if manifest.serial == installed and canonical(signed) != canonical(manifest.as_json()):
        what = f"another update of the serial number {installed} is installed"
        raise DigestError(what, where=where, hint="whoever makes updates gives each a number of its own")


def refuse_fewer_rounds(manifest: Manifest, present: Manifest | None, where: str | Path) -> None:
    """Refuse a ledger that an installed one of the same run goes beyond.

    Raises:
        DigestError: naming both rounds.
    """
    rounds = {one.run: one.round for one in present.ledgers if one.run} if present is not None else {}
    for one in manifest.ledgers:
        if one.round < rounds.get(one.run, 0):
            what = f"{one.name} has {one.round} rounds of its run, {rounds[one.run]} are installed"
            raise DigestError(what, where=where, hint=OLDER)
