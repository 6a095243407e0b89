"""Files that devices have installed: the embedded model in half precision and in blocks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from desks import Fleet

from edgetune.compress.grid import AbsMax
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.quantised import GRIDS
from edgetune.export.gguf_file import write_gguf
from edgetune.models.backbone import load_backbone
from ledgers import make

Installed = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Export the embedded model once a type: its projections in it, the rest in F16."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("exported")

    def export(kind: str) -> Path:
        path = folder / f"{kind}.gguf"
        if not path.exists():
            backbone = load_backbone("embedded")
            quantised = {
                name: round_to_nearest(weight.detach(), GRIDS[kind], AbsMax(), name=name)
                for name, weight in backbone.model.named_parameters()
                if kind in GRIDS and "proj" in name and weight.shape[1] % GRIDS[kind].block == 0
            }
            assert quantised or kind not in GRIDS
            said = {"base_digest": backbone.digest, "ledger_digest": ""}
            float_type = "F32" if kind == "F32" else "F16"
            write_gguf(
                path,
                backbone.model,
                backbone.tokenizer,
                quantised=quantised,
                float_type=float_type,
                metadata=said,
            )
        return path

    return export


@pytest.fixture
def installed(tmp_path: Path, exported: Callable[[str], Path]) -> Installed:
    """Put a file on a device: a folder with nothing else in it."""

    def install(kind: str = "Q8_0") -> Path:
        file = tmp_path / "device" / "model.gguf"
        file.parent.mkdir(exist_ok=True)
        shutil.copyfile(exported(kind), file)
        return file

    return install


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[..., Path]:
    """Write a ledger of the embedded model."""

    def write(name: str = "pool", file: str = "fed.ledger", **fields: object) -> Path:
        folder = tmp_path / "desk"
        folder.mkdir(exist_ok=True)
        return make(folder / file, "embedded", name, **fields)  # type: ignore[arg-type]

    return write


@pytest.fixture
def fleet(installed: Callable[..., Path], tmp_path: Path) -> Fleet:
    file = installed()
    (tmp_path / "base.gguf").write_bytes(file.read_bytes())
    (tmp_path / "desk").mkdir(exist_ok=True)
    pytest.importorskip("cryptography")
    from edgetune.installed.signing import new_key, public_key

    public = new_key(tmp_path / "signing")
    return Fleet(file, tmp_path / "desk", tmp_path / "signing", public_key(public))
