"""Ways to write numbers, by the name that recipes use."""

from __future__ import annotations

from edgetune.wire.log8 import Log8
from edgetune.wire.sign import Sign
from edgetune.wire.values import Float16, Float32, Values

FLOATS: dict[str, type[Values]] = {kind.name: kind for kind in (Float32, Float16)}
"""For what is summed from round to round: small steps of large sums must survive."""
AMOUNTS: dict[str, type[Values]] = {**FLOATS, Log8.name: Log8}
"""For what is said once and then summed."""
VALUES: dict[str, type[Values]] = {**AMOUNTS, Sign.name: Sign}
"""For single slopes."""
