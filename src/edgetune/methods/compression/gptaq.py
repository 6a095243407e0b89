"""GPTAQ's objective: round so that the outputs stay near the dense model's, whose inputs the layer has no more.

Two passes of coordinate descent over codes and scales follow the sweep.
"""

from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import Round
from edgetune.compress.search import LeastError
from edgetune.core.quantised import Q4_0, Q8_0

METHOD = CompressionMethod(
    name="gptaq",
    summary="OPTQ aimed at the outputs of the dense model: what earlier layers lost is made up for as well.",
    source="the objective of Li et al., GPTAQ, arXiv 2504.02692, solved in closed form for the target",
    compensate=True,
    aim_dense=True,
    grid=Q4_0,
    scale=LeastError(),
    rule=Round,
    embeddings=Q8_0,
    damping=0.01,
    block=128,
    passes=2,
)
