"""The bottleneck adapter: a small network after every sublayer of a decoder block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import skip_init
from transformers import PreTrainedModel

from edgetune.core.errors import ConfigError, ModelError
from edgetune.tune.initial import uniform
from edgetune.tune.placed import Placed
from edgetune.tune.target import Placing

CHILD = "bottleneck"
"""Name of the adapter in the module that it follows."""
ATTENTION, FEED_FORWARD = ("attn", "attention"), ("mlp", "feed_forward", "ffn", "fc2")
"""What names of sublayers hold or are."""


class Bottleneck(nn.Module):
    """h + U relu(D h + d) + u, which is h at the start.

    Args:
        width: length of h.
        inner: length of D h.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # Nothing is drawn: torch's generator is everybody's.
        self.down: nn.Linear = skip_init(nn.Linear, width, inner)  # type: ignore[no-untyped-call]
        self.up: nn.Linear = skip_init(nn.Linear, inner, width)  # type: ignore[no-untyped-call]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the adapted activations, in the type of `hidden`."""
        change: torch.Tensor = self.up(torch.relu(self.down(hidden.float())))
        return hidden + change.to(hidden.dtype)


class BottleneckPlaced(Placed):
    """Adapters behind a model's sublayers, through hooks.

    Args:
        model: its own weights stay untouched.
        reduction: width over inner width.
        seed: of D's initial values.

    Raises:
        ModelError: if the model has no list of decoder blocks.
    """

    def __init__(self, model: PreTrainedModel, reduction: int, seed: int) -> None:
        width = int(model.config.get_text_config().hidden_size)
        self._model, self._sites, self._hooks = model, _sites(model), []
        for site in self._sites:
            made = Bottleneck(width, max(1, width // reduction)).to(model.device)
            site.add_module(CHILD, made.eval())
            self._hooks.append(site.register_forward_hook(_adapt))
        weights = {name: one for name, one in model.named_parameters() if f".{CHILD}." in name}
        with torch.no_grad():
            for name, weight in weights.items():
                if name.endswith("down.weight"):
                    weight.copy_(uniform(seed, name, weight.shape, width**-0.5))
                else:
                    weight.zero_()
        super().__init__(
            model,
            weights,
            {"peft_type": "BOTTLENECK", "reduction": reduction, "seed": seed},
        )

    def plain(self) -> PreTrainedModel:
        """Return the model with its adapters: they are no change of its weights."""
        for weight in self.weights.values():
            weight.requires_grad_(False)
        return self._model

    def remove(self) -> None:
        """Take the adapters off."""
        for hook in self._hooks:
            hook.remove()
        for site in self._sites:
            delattr(site, CHILD)


@dataclass(frozen=True, slots=True)
class Adapter(Placing):
    """A bottleneck behind attention and behind the feed-forward part of every block.

        h <- h + U relu(D h + d) + u,   U, u, d = 0 at the start

    Where a block's sublayers are not known by name, one follows the whole block.

    Args:
        reduction: width of the model over that of the bottleneck, at least 1.
    Cost: 4 width^2 / reduction weights a block.
    Source: Houlsby et al. 2019, arXiv:1902.00751; reduction 16 as in Zhang et al. 2023, arXiv:2212.10025.
    """

    reduction: int = 16
    name: ClassVar[str] = "adapter"
    options: ClassVar[Mapping[str, str]] = {"reduction": "reduction"}

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ConfigError(f"a bottleneck is no wider than its model: reduction is {self.reduction}")

    @property
    def merges(self) -> bool:
        """No: a network between layers is no change of theirs."""
        return False

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Put the adapters on the model; `base` is not used."""
        return BottleneckPlaced(model, self.reduction, seed)

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Adapter:
        """Return the target of a ledger."""
        return cls(said["reduction"])


def has_bottlenecks(model: nn.Module) -> bool:
    """Say whether adapters lie between a model's layers."""
    return any(isinstance(module, Bottleneck) for module in model.modules())


def _adapt(site: nn.Module, given: Any, output: Any) -> Any:
    adapter = getattr(site, CHILD)
    if isinstance(output, tuple):
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def _sites(model: nn.Module) -> list[nn.Module]:
    """Return what adapters follow: of every block attention and the feed-forward part, else the block."""
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one)]
    blocks = max(lists, key=len, default=None)
    if blocks is None:
        raise ModelError("a bottleneck adapter follows decoder blocks, and this model has none")
    found = list[nn.Module]()
    for block in blocks:
        named = dict(block.named_children())
        attention = [
            one
            for name, one in named.items()
            if any(part in name for part in ATTENTION) and "norm" not in name
        ]
        feed = [one for name, one in named.items() if name in FEED_FORWARD]
        both = len(attention) == len(feed) == 1
        found += [attention[0], feed[0]] if both else [block]
    return found
