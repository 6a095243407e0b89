"""OPTQ (GPTQ): solve for the rounded weights so that the layer's outputs, not its weights, stay close."""

from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import Round
from edgetune.compress.search import LeastError
from edgetune.core.quantised import Q4_0, Q8_0

METHOD = CompressionMethod(
    name="optq",
    summary="4-bit rounding in which later columns make up for earlier errors, on calibration text.",
    source="Frantar et al., OPTQ, arXiv 2210.17323",
    compensate=True,
    grid=Q4_0,
    scale=LeastError(),
    rule=Round,
    embeddings=Q8_0,
    damping=0.01,
    block=128,
)
