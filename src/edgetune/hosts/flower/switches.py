"""Flower's habits of calling home, off before any of it is imported."""

from __future__ import annotations

import logging
import os

from edgetune.core.errors import MissingExtraError

OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Telemetry, the look for updates, and the installation of packages that a run names."""


def switch_off() -> None:
    """Switch off telemetry, update check and run-time installation, and the libraries' own lines on the terminal.

    Raises:
        MissingExtraError: if Flower is not installed.
    """
    os.environ.update(OFF)
    try:
        import flwr.supercore.logger  # noqa: F401 - it sets its own level when it is imported
    except ImportError as error:
        raise MissingExtraError("flwr", "flower", "a federation across hosts") from error
    for name in ("flwr", "uvicorn.error", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
