"""What an optimiser or a server keeps beside a ledger: written first, named by round, bound to it by digest."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from edgetune.core.errors import ModelError
from edgetune.core.files import write_atomic

BESIDE = "optimiser"
"""Key of a ledger's extra entries: SHA-256 of the file beside it."""
FLIGHT = "flight"
"""The same of the file of replies that were under way (`federation.flight`)."""
State = dict[str, torch.Tensor]


AGAIN = "delete the folder to start again"


def beside(ledger: Path, round: int, what: str = BESIDE) -> Path:
    """Name the state after its round: a kill between two writes must not pair a ledger with a later optimiser."""
    return ledger.with_suffix(f".{what}-{round}.safetensors")


def write_state(ledger: Path, round: int, state: Mapping[str, torch.Tensor], what: str = BESIDE) -> str:
    """Write a state before its ledger, and return the digest that the ledger shall carry.

    Raises:
        OutputError: if it cannot be written.
    """
    # Python writes the bytes: the library's own writer reports a full disk as an error that is no OSError.
    data = save({name: tensor.contiguous() for name, tensor in state.items()})
    write_atomic(beside(ledger, round, what), lambda temporary: temporary.write_bytes(data))
    return sha256(data).hexdigest()


def read_state(ledger: Path, round: int, digest: str | None, start: State, directions: int) -> State:
    """Read the state of a ledger's round, and check that it is this ledger's and one that the optimiser can have.

    Args:
        ledger: the `.ledger` file.
        round: its round.
        digest: what the ledger says of the state.
        start: the optimiser's state before the first step: names and types, and shapes that do not grow.
        directions: size of the pool, 0 if there is none.

    Raises:
        ModelError: if the file is missing, damaged, of another ledger, or holds what no such optimiser can hold.
    """
    found = read_bound(ledger, round, digest)
    if not _possible(found, start, directions):
        raise ModelError(
            "the optimiser's state is none that this method can have",
            where=beside(ledger, round),
            hint=AGAIN,
        )
    return {name: tensor.to(start[name].device) for name, tensor in found.items()}


def read_bound(ledger: Path, round: int, digest: str | None, what: str = BESIDE) -> State:
    """Read what stands beside a ledger, and check that it is what the ledger was written with.

    Raises:
        ModelError: if the file is missing, damaged, or of another ledger.
    """
    path = beside(ledger, round, what)
    try:
        data = path.read_bytes()
        found = load(data) if sha256(data).hexdigest() == digest else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"the {what}'s state is missing or damaged", where=path, hint=AGAIN) from error
    if found is None:
        raise ModelError(
            f"the {what}'s state is not the one that the ledger was written with", where=path, hint=AGAIN
        )
    return found


def forget_states(ledger: Path, but: int) -> None:
    """Remove the states of all rounds but one: kills may have left them."""
    for what in (BESIDE, FLIGHT):
        kept = beside(ledger, but, what)
        for path in ledger.parent.glob(f"{ledger.stem}.{what}-*.safetensors"):
            if path != kept:
                path.unlink(missing_ok=True)


def _possible(found: State, start: State, directions: int) -> bool:
    if {name: one.dtype for name, one in found.items()} != {name: one.dtype for name, one in start.items()}:
        return False
    keys = found.get("keys")
    if keys is not None and not _sound_keys(keys, directions):
        return False
    for name, tensor in found.items():
        grows = keys is not None and start[name].shape == (0,)
        if tensor.shape != ((len(keys),) if keys is not None and grows else start[name].shape):
            return False
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return False
    return True


def _sound_keys(keys: torch.Tensor, directions: int) -> bool:
    if keys.ndim != 1 or len(torch.unique(keys)) != len(keys):
        return False
    return not len(keys) or (int(keys.min()) >= 0 and (not directions or int(keys.max()) < directions))
