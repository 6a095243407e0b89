"""Solved blocks on disk, so that a killed compression goes on at its block."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from edgetune.core.errors import ModelError
from edgetune.core.events import LayerCompressed
from edgetune.core.files import PARTIAL, write_atomic
from edgetune.core.fitting import fitting
from edgetune.core.integers import grid_named
from edgetune.core.quantised import QuantisedMatrix

DIGEST = 32
"""Bytes before the payload: its SHA-256."""
ABOUT = "about"
AGAIN = "delete the folder to start again"


@dataclass(frozen=True, slots=True)
class SolvedBlock:
    """What compressing a block came to.

    Args:
        stored: parameter name to matrix as a file holds it.
        floats: parameter name to what became of a matrix that stays in float (pruned), [out, in].
        events: told of its matrices.
    """

    stored: Mapping[str, QuantisedMatrix]
    floats: Mapping[str, torch.Tensor]
    events: Sequence[LayerCompressed]


@dataclass(frozen=True, slots=True)
class BlockStore:
    """A folder with one file a solved block.

    Args:
        folder: where they lie; must exist.
        job: names everything that decides the result (`job_name`); a file of another job is not read.
    """

    folder: Path
    job: str

    def write(self, index: int, block: SolvedBlock) -> None:
        """Keep a block, atomically.

        Raises:
            OutputError: if it cannot be written.
        """
        tensors = {f"float:{name}": values.contiguous() for name, values in block.floats.items()}
        grids = {}
        units = {name: matrix.unit for name, matrix in block.stored.items()}
        for name, matrix in block.stored.items():
            grids[name] = matrix.grid.name
            tensors[f"codes:{name}"] = matrix.codes.contiguous()
            for place, numbers in enumerate(matrix.numbers):
                tensors[f"{place}:{name}"] = numbers.contiguous()
        about = {
            "job": self.job,
            "grids": grids,
            "units": units,
            "events": [asdict(event) for event in block.events],
        }
        text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8).copy()
        data = save(tensors | {ABOUT: torch.from_numpy(text)})
        path = self._path(index)
        write_atomic(path, lambda temporary: temporary.write_bytes(sha256(data).digest() + data))

    def read(self, index: int) -> SolvedBlock | None:
        """Return a block that was kept; None where there is none of this job.

        Raises:
            ModelError: if the file is damaged.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            if sha256(data[DIGEST:]).digest() != data[:DIGEST]:
                raise ValueError("another digest")
            tensors = load(data[DIGEST:])
            about = json.loads(bytes(tensors.pop(ABOUT).numpy()))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError("a compressed block is damaged", where=path, hint=AGAIN) from error
        if about["job"] != self.job:
            return None
        stored = {
            name: _matrix(name, grid, about["units"][name], tensors) for name, grid in about["grids"].items()
        }
        floats = {key[6:]: values for key, values in tensors.items() if key.startswith("float:")}
        return SolvedBlock(stored, floats, [_event(one) for one in about["events"]])

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index}.solved"


def clear(folder: Path) -> None:
    """Remove the blocks of every job from a folder, and what killed writers of blocks left unfinished there."""
    for path in [*folder.glob("block-*.solved"), *folder.glob(f"{PARTIAL}block-*")]:
        path.unlink(missing_ok=True)


def version() -> str:
    """Return the version of this package, "unknown" in a source tree that was never installed."""
    try:
        return metadata.version("edgetune")
    except metadata.PackageNotFoundError:
        return "unknown"


def job_name(*parts: object) -> str:
    """Return the SHA-256 of what decides a result: tensors by their bytes, everything else by how it prints."""
    found = sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            raw = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            found.update(f"{part.dtype}{tuple(part.shape)}".encode() + raw.tobytes())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()


def _matrix(name: str, named: str, unit: float, tensors: Mapping[str, torch.Tensor]) -> QuantisedMatrix:
    codes, kind = tensors[f"codes:{name}"], grid_named(named)
    grid = None if kind is None else fitting(kind, codes.shape[1])
    if grid is None:
        raise ModelError(
            f"a compressed block is on {named[:40]!r}, no grid of its width", where=name, hint=AGAIN
        )
    numbers = tuple(tensors[f"{place}:{name}"] for place in range(len(grid.fields)))
    return QuantisedMatrix(grid, codes, numbers, unit)


def _event(raw: Mapping[str, object]) -> LayerCompressed:
    known = {name: raw[name] for name in LayerCompressed.__dataclass_fields__ if name in raw}
    return LayerCompressed(**known)  # type: ignore[arg-type]
