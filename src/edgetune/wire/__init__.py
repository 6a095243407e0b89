"""Codecs and framing: what really travels; reported bytes are the length of these payloads."""

from edgetune.wire.frame import DOWN, UP, Frame
from edgetune.wire.seed_list import SeedList
from edgetune.wire.seed_table import SeedTable
from edgetune.wire.tensors import Tensors

Codec = SeedTable | SeedList | Tensors

__all__ = ["DOWN", "UP", "Codec", "Frame", "SeedList", "SeedTable", "Tensors"]
