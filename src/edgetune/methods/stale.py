"""Whether a method can be served by a server that takes replies made from earlier states."""

from __future__ import annotations

from edgetune.core.errors import ConfigError
from edgetune.core.part import STALE
from edgetune.methods.method import TuningMethod


def check_stale(method: TuningMethod) -> None:
    """Refuse a method that needs all replies of a round to be of one state.

    Raises:
        ConfigError: naming the part that needs it.
    """
    refusing = next((part for part in method.parts.values() if STALE in part.refuses), None)
    if refusing is not None:
        raise ConfigError(
            f"{refusing.title} does not go with {STALE}",
            where=f"method {method.name}",
            hint="leave federation.buffer out, so that a round waits for its own replies",
        )
