"""Codecs and framing: what really travels; reported bytes are the length of these payloads."""

from edgetune.wire.changed import Changed
from edgetune.wire.codec import Codec
from edgetune.wire.coefficients import Coefficients
from edgetune.wire.frame import CHOICE, DOWN, SCORES, UP, Frame
from edgetune.wire.known import Known
from edgetune.wire.log import Log
from edgetune.wire.log8 import Log8
from edgetune.wire.sign import Sign
from edgetune.wire.slopes import Slopes
from edgetune.wire.table import Table
from edgetune.wire.tensors import Tensors
from edgetune.wire.terms import Terms
from edgetune.wire.values import Float16, Float32
from edgetune.wire.weighed_table import WeighedTable

CODECS: tuple[type[Codec], ...] = (Coefficients, Slopes, Table, WeighedTable, Log, Terms, Tensors, Changed)

__all__ = [
    "CHOICE",
    "CODECS",
    "DOWN",
    "SCORES",
    "UP",
    "Changed",
    "Codec",
    "Coefficients",
    "Float16",
    "Float32",
    "Frame",
    "Known",
    "Log",
    "Log8",
    "Sign",
    "Slopes",
    "Table",
    "Tensors",
    "Terms",
    "WeighedTable",
]
