"""Magnitude pruning: the smallest weights of a matrix go; the baseline that needs no text."""

from edgetune.compress.masking import Magnitude, Pruning, Unstructured
from edgetune.compress.method import CompressionMethod
from edgetune.core.quantised import Q8_0

METHOD = CompressionMethod(
    name="magnitude",
    summary="The smaller half of every matrix's weights pruned; the baseline any pruning has to beat.",
    source="the magnitude baseline of SparseGPT, arXiv 2301.00774, section 4",
    compensate=False,
    grid=None,
    mask=Pruning(Unstructured(0.5), Magnitude()),
    embeddings=Q8_0,
)
