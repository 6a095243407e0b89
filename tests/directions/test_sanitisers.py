"""No data race, no access out of bounds, no undefined behaviour in the compiled kernel."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgetune.directions import native

DRIVER = Path(__file__).with_name("sanitise.c")
OPERATIONS = 9 * 3 * (1 + 1 + 7 * 2) + 5 * 2 * 2 * 3 + 7 * 2 * 3 * 2 * 2 + 6 * 5 * 2 + 5 * 3 * 3 * 3
"""What the driver does on each instruction set: sizes, types, kinds, pools; shapes, threads, kinds, residencies; sizes,
types, types of the base, kinds, starts of steps that keep their remainders; columns, widths, directions of tiles;
shapes, types, types of the base, terms of rank one."""
FLAGS = [
    "-std=gnu99",
    "-O1",
    "-g",
    "-ffp-contract=off",
    "-Wno-psabi",
    "-pthread",
    "-fno-sanitize-recover=all",
]


@pytest.mark.parametrize("sanitiser", ["address,undefined", "thread"])
def test_the_kernel_is_clean(sanitiser: str, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "sanitise"
    built = subprocess.run(
        [compiler, *FLAGS, f"-fsanitize={sanitiser}", str(DRIVER), "-o", str(program)],
        capture_output=True,
        text=True,
    )
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip(f"this compiler has no runtime for -fsanitize={sanitiser}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = dict(map(int, line.split()) for line in done.stdout.splitlines())
    assert len(counts) > native.best_level()  # without a compiled kernel at install, it is one at least
    assert set(counts.values()) == {OPERATIONS}
