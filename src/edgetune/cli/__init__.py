"""What a person runs: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code; see `edgetune.cli.app` for the codes."""
    from edgetune.cli.app import execute
    from edgetune.core.allocator import return_freed_blocks

    return_freed_blocks()
    sys.exit(execute(sys.argv[1:]))
