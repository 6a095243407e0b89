"""What a person runs: the command line."""

from __future__ import annotations

import logging
import sys

LOUD = ("torchao", "torch.utils._pytree")
"""Loggers that warn of kernels for other machines whenever transformers finds torchao, which ExecuTorch brings."""


def main() -> None:
    """Run the command line and leave with its exit code; see `edgetune.cli.app` for the codes."""
    from edgetune.cli.app import execute
    from edgetune.core.allocator import return_freed_blocks

    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    return_freed_blocks()
    sys.exit(execute(sys.argv[1:]))
