"""A link between a client and a server: a TCP relay, in a process of its own, that is slow, late, and counts.

    python relay.py --to HOST:PORT --counts FILE.json [--listen HOST:PORT] [--rate BITS] [--delay MS]

It says where it listens on its first line of output, and ends when its standard input does: with whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, cast

SEGMENT, WHOLE = 1448, 1 << 16
"""Bytes that share a slow link at a time: a TCP segment over Ethernet; and those of one without a limit."""
BEHIND = 1024
"""Pieces of a connection that are on their way at most; then the sender is made to wait, as TCP does."""
RESET = struct.pack("ii", 1, 0)
EVERY = 0.25
"""Seconds between two writings of the counts."""


@dataclass
class Passed:
    """What passed in a connection: bytes of TCP's payload, so TLS included and IP's headers not."""

    peer: str
    opened: float
    up: int = 0
    down: int = 0
    closed: float | None = None


@dataclass
class Way:
    """One way of the link, shared by all connections.

    Args:
        rate: bits a second; 0 is no limit.
        delay: seconds.
    """

    rate: float
    delay: float
    free: float = 0.0

    async def leave(self, count: int) -> float:
        """Wait until so many bytes have left, one piece after the other; returns when they arrive."""
        now = time.monotonic()
        if self.rate:
            self.free = max(now, self.free) + count * 8 / self.rate
            await asyncio.sleep(self.free - now)
            return self.free + self.delay
        return now + self.delay


@dataclass
class Link:
    """Both ways, and what passed."""

    to: tuple[str, int]
    up: Way
    down: Way
    passed: list[Passed] = field(default_factory=list)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until both sides have closed it, or one has broken it."""
        host, port = writer.get_extra_info("peername")[:2]
        passed = Passed(f"{host}:{port}", time.time())
        self.passed.append(passed)
        onward: asyncio.StreamWriter | None = None
        try:
            await asyncio.sleep(self.up.delay + self.down.delay)  # TCP's own greeting crosses the link too
            there, onward = await asyncio.open_connection(*self.to)
            ways = (self._carry(reader, onward, passed, "up"), self._carry(there, writer, passed, "down"))
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        except OSError:
            for one in (writer, onward):
                if one is not None:  # a broken connection is broken on both sides, not ended
                    with contextlib.suppress(OSError):
                        one.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.transport.abort()
        finally:
            passed.closed = time.time()
            for one in (writer, onward):
                if one is not None:
                    one.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed, name: str
    ) -> None:
        way: Way = getattr(self, name)
        road = asyncio.Queue[tuple[float, bytes]](BEHIND)

        async def arrive() -> None:
            while True:
                due, data = await road.get()
                await asyncio.sleep(due - time.monotonic())
                if not data:
                    with contextlib.suppress(OSError):  # the other side may be gone
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        arriving = asyncio.ensure_future(arrive())
        try:
            data = b"begun"
            while data:
                data = await reader.read(SEGMENT if way.rate else WHOLE)
                setattr(passed, name, getattr(passed, name) + len(data))
                piece = (await way.leave(len(data)), data)
                putting = asyncio.ensure_future(road.put(piece))
                await asyncio.wait({putting, arriving}, return_when=asyncio.FIRST_COMPLETED)
                if arriving.done() and data:
                    putting.cancel()
                    break
            await arriving  # its error is the connection's
        finally:
            arriving.cancel()

    def write(self, path: Path) -> None:
        """Write the counts, atomically."""
        sums = {way: sum(getattr(one, way) for one in self.passed) for way in ("up", "down")}
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({**sums, "connections": [asdict(one) for one in self.passed]}))
        beside.replace(path)


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT."""
    host, _, port = text.rpartition(":")
    return host, int(port)


async def serve(link: Link, listen: tuple[str, int], counts: Path) -> None:
    """Relay until standard input ends."""
    server = await asyncio.start_server(link.connect, *listen)
    host, port = server.sockets[0].getsockname()[:2]
    link.write(counts)
    print(f"relay on {host}:{port}", flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    while not ended.done():
        await asyncio.wait({ended}, timeout=EVERY)
        link.write(counts)
    server.close()


class Relay:
    """A relay as a context.

    Args:
        to: where it relays to.
        counts: file of the counts.
        rate: bits a second, each way; 0 is no limit.
        delay: milliseconds, each way.
        listen: where it listens; a free port of the loopback if not given.
        prefix: put before its command, to run it elsewhere: in a network namespace.
    """

    def __init__(
        self,
        to: str,
        counts: Path,
        *,
        rate: float = 0,
        delay: float = 0,
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
    ) -> None:
        self._counts = counts
        words = ["--to", to, "--counts", str(counts), "--rate", str(rate), "--delay", str(delay)]
        self._command = [*prefix, sys.executable, str(Path(__file__)), *words, "--listen", listen]
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def __enter__(self) -> Relay:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = cast(IO[str], self._process.stdout).readline()
        self.address = said.rpartition(" ")[2].strip()
        if not self.address:
            self.__exit__(None, None, None)
            raise RuntimeError(f"the relay did not start: {self._command}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            try:
                process.communicate(timeout=10)  # closes its standard input
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def counts(self) -> dict[str, int]:
        """Return the bytes of TCP's payload so far, `up` to the server and `down` from it, at most `EVERY` old."""
        found = json.loads(self._counts.read_text())
        return {"up": found["up"], "down": found["down"]}

    def connections(self) -> list[Passed]:
        """Return what passed in each connection, in the order of their opening."""
        return [Passed(**one) for one in json.loads(self._counts.read_text())["connections"]]


def main() -> None:
    """Read the command line, relay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=address, required=True)
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0))
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--delay", type=float, default=0)
    said = parser.parse_args()
    up, down = (Way(said.rate, said.delay / 1000) for _ in range(2))
    asyncio.run(serve(Link(said.to, up, down), said.listen, said.counts))
    os._exit(0)  # connections that are open end with it


if __name__ == "__main__":
    main()
