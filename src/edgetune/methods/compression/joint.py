"""Prune and quantise for one objective: what is kept goes on a grid and makes up for both errors."""

from edgetune.compress.masking import AfterCompensation, Pruning, Unstructured
from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import Round
from edgetune.compress.search import LeastError
from edgetune.core.quantised import Q4_0, Q8_0

METHOD = CompressionMethod(
    name="joint",
    summary="Half of the weights pruned and the others rounded to 4 bits; what is kept makes up for both.",
    source="Frantar & Alistarh, SparseGPT, arXiv 2301.00774, 3.5; SparseSwaps, 2512.10922; polish of ALPS, 2406.07831",
    compensate=True,
    grid=Q4_0,
    scale=LeastError(),
    rule=Round,
    mask=Pruning(Unstructured(0.5), AfterCompensation()),
    swaps=16,
    polish=8,
    embeddings=Q8_0,
    damping=0.01,
    block=128,
    passes=4,
)
