"""A device, the desk at which its updates are made, and a server between them."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from edgetune.installed.fetching import Source
from edgetune.installed.install import update
from edgetune.installed.making import make


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path, handler: type[http.server.BaseHTTPRequestHandler] = Quiet) -> Iterator[str]:
    made = functools.partial(handler, directory=str(folder)) if handler is Quiet else handler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/update.json"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Fleet:
    """A device, and the desk at which its updates are made."""

    file: Path
    desk: Path
    key: Path
    trusted: str

    @property
    def manifest(self) -> Path:
        return self.desk / "update.json"

    def offer(self, *ledgers: Path) -> None:
        make(self.file.parents[1] / "base.gguf", ledgers, self.manifest, key=self.key)

    def take(self, address: str | None = None, **options: object) -> object:
        options = {"trusted": self.trusted} | options
        return update(self.file, Source(address or str(self.manifest)), **options)  # type: ignore[arg-type]


def everything(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@contextmanager
def refused(fleet: Fleet, kind: type[Exception], match: str) -> Iterator[None]:
    before = everything(fleet.file.parent)
    with pytest.raises(kind, match=match):
        yield
    assert everything(fleet.file.parent) == before
