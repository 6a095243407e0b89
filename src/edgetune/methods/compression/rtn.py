"""Round-to-nearest: the baseline that needs no text; the scales are those of llama.cpp's own quantiser."""

from edgetune.compress.grid import AbsMax
from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import Round
from edgetune.core.quantised import Q4_0, Q8_0

METHOD = CompressionMethod(
    name="rtn",
    summary="4-bit rounding of every weight by itself; the baseline any solver has to beat.",
    source="the RTN baseline of OPTQ, arXiv 2210.17323, section 4",
    compensate=False,
    grid=Q4_0,
    scale=AbsMax(),
    rule=Round,
    embeddings=Q8_0,
)
