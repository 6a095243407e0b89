"""Measure a federation across hosts on this machine's loopback (`make bench-hosts`), and write docs/results/hosts.md.

    python benchmarks/hosts.py [SECTION ...] --out docs/results

Sections: first, rounds, bytes, idle, many, imports, endurance; all of them take about 15 minutes on two cores. What is
measured is kept in hosts.json, so that a section can be measured again alone.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hosts_bytes import idle, transport
from hosts_many import imports, many
from hosts_page import HEAD, TEXTS
from hosts_sections import endurance, first_forward, round_latency

SECTIONS: dict[str, Callable[[], Any]] = {
    "first": first_forward,
    "rounds": round_latency,
    "bytes": transport,
    "idle": idle,
    "many": many,
    "imports": imports,
    "endurance": endurance,
}


def main(
    sections: Annotated[
        list[str] | None, typer.Argument(help="What to measure; everything if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of hosts.md and hosts.json.")] = Path("docs/results"),
    write: Annotated[bool, typer.Option("--write", help="Write the page of what is measured.")] = False,
) -> None:
    """Measure the sections and write the page."""
    kept, page = out / "hosts.json", out / "hosts.md"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in [] if write else sections or list(SECTIONS):
        found[name] = SECTIONS[name]()
        found["machine"] = (
            f"{os.cpu_count()} cores, Python {platform.python_version()}, {datetime.date.today()}"
        )
        kept.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found[name]))
    texts = [TEXTS[name](found[name]) for name in SECTIONS if name in found]
    page.write_text(HEAD.format(machine=found["machine"]) + "".join(texts))


if __name__ == "__main__":
    typer.run(main)
