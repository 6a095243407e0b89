"""Wanda: prune the weights that matter least at the output, row by row; the others stay as they are."""

from edgetune.compress.masking import AtOutput, Pruning, Unstructured
from edgetune.compress.method import CompressionMethod
from edgetune.core.quantised import Q8_0

METHOD = CompressionMethod(
    name="wanda",
    summary="Half of every row pruned by weight times input norm; no kept weight moves.",
    source="Sun et al., Wanda, arXiv 2306.11695",
    compensate=False,
    grid=None,
    mask=Pruning(Unstructured(0.5), AtOutput()),
    embeddings=Q8_0,
)
