"""Codecs and framing: what really travels; reported bytes are the length of these payloads."""

from edgetune.wire.codec import Codec
from edgetune.wire.coefficients import Coefficients
from edgetune.wire.frame import DOWN, UP, Frame
from edgetune.wire.known import Known
from edgetune.wire.log import Log
from edgetune.wire.slopes import Slopes
from edgetune.wire.table import Table
from edgetune.wire.tensors import Tensors
from edgetune.wire.terms import Terms
from edgetune.wire.values import Float16, Float32

CODECS: tuple[type[Codec], ...] = (Coefficients, Slopes, Table, Log, Terms, Tensors)

__all__ = [
    "CODECS",
    "DOWN",
    "UP",
    "Codec",
    "Coefficients",
    "Float16",
    "Float32",
    "Frame",
    "Known",
    "Log",
    "Slopes",
    "Table",
    "Tensors",
    "Terms",
]
