"""How different a layer's outputs for different records are: the score by which prompts of layers are ranked."""

from __future__ import annotations

import torch

RIDGE = 1e-5
"""Added to every eigenvalue: records that are alike make a singular matrix."""


def similarity_score(hidden: torch.Tensor, mask: torch.Tensor) -> float:
    """Return a layer's score.

        S_ij = cos(h_i, h_j),   score = sum_i (ln l_i + 1 / l_i),   l_i: eigenvalues of S, each + 1e-5

    The more alike the records look to the layer, the nearer to 0 are the smaller eigenvalues, and the larger is the
    score. It is at least the number of records; of one record it is 1 for every layer, and says nothing. The order of
    the records plays no part.

    Args:
        hidden: outputs, float [records, positions, width].
        mask: 1 on tokens, 0 on padding, which counts as zeros; int64 [records, positions].
    Cost: records^2 dot products, in float64.
    Source: Che et al. 2023, arXiv:2310.15080; llm-eff/FedPepTAO, run_getscore.py (by a solver for any matrix).
    """
    flat = (hidden.double() * mask.unsqueeze(-1)).flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    values = torch.linalg.eigvalsh(unit @ unit.T).clamp(min=0) + RIDGE
    return float((values.log() + 1 / values).sum())
