"""SparseGPT: prune what costs least once the other weights have made up for it, and let them make up for it."""

from edgetune.compress.masking import AfterCompensation, Pruning, Unstructured
from edgetune.compress.method import CompressionMethod
from edgetune.core.quantised import Q8_0

METHOD = CompressionMethod(
    name="sparsegpt",
    summary="Half of the weights pruned, the others make up for it; then mask and kept weights are improved.",
    source="Frantar & Alistarh, SparseGPT, arXiv 2301.00774; SparseSwaps, 2512.10922; the polish of ALPS, 2406.07831",
    compensate=True,
    grid=None,
    mask=Pruning(Unstructured(0.5), AfterCompensation()),
    swaps=16,
    polish=8,
    embeddings=Q8_0,
    damping=0.01,
    block=128,
)
