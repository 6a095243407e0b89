"""What a round really sends, beside what the usual alternatives would send for the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

from edgetune.core.errors import MissingExtraError
from edgetune.core.events import Traffic
from edgetune.models.backbone import Backbone
from edgetune.tune import Lora
from edgetune.wire import DOWN, Frame
from edgetune.wire.tensors import half_length

RANK = 8


def alternatives(backbone: Backbone) -> dict[str, dict[str, int]]:
    """Return the payload lengths of what FedAvg on full weights and on LoRA would send, in half precision.

    Args:
        backbone: the untouched base model.

    Returns:
        `{name: {"payload_up_bytes", "payload_down_bytes"}}`; both directions carry the same tensors.
    Cost: the adapters; of the weights only names and shapes are looked at, and none is copied.
    """
    found = {"FedAvg, full weights (fp16)": _length(dict(backbone.model.named_parameters()))}
    try:
        shared = {id(weight): weight for weight in backbone.model.parameters()}
        adapted = Lora(rank=RANK).open(deepcopy(backbone.model, shared), None, seed=0)
        found[f"FedAvg, LoRA r={RANK} (fp16)"] = _length(dict(adapted.named_weights()))
    except MissingExtraError:
        pass  # the table then has one row less; `edgetune doctor` names the extra
    return {name: {"payload_up_bytes": size, "payload_down_bytes": size} for name, size in found.items()}


def traffic(rounds: Sequence[dict[str, Any]], others: dict[str, dict[str, int]]) -> Traffic:
    """Sum up the payloads of a run.

    Args:
        rounds: the `round` events of the log, one a round.
        others: from `alternatives`.
    """
    up = [size for one in rounds for size in one["payload_up_bytes"]]
    down = [size for one in rounds for size in one["payload_down_bytes"]]
    return Traffic(
        rounds=len(rounds),
        devices_per_round=max((len(one["payload_up_bytes"]) for one in rounds), default=0),
        payload_up_bytes=max(up, default=0),
        payload_down_bytes=max(down, default=0),
        total_bytes=sum(up) + sum(down),
        alternatives=others,
    )


def _length(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes of a message of tensors in float16, of which nothing is encoded but an empty body."""
    frame = len(Frame(DOWN, bytes(8), bytes(8), 1, b"").encode())
    return frame + half_length({name: tuple(tensor.shape) for name, tensor in tensors.items()})
