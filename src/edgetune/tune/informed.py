"""Initialisers of low-rank factors that look at records: EVA at activations, LoRA-GA at a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edgetune.core.batch import IGNORED, Batch
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.fused_loss import fused_response_loss
from edgetune.core.residual import Factors
from edgetune.tune.initialisers import Initialiser, LayerFactors, by_peft
from edgetune.tune.placement import peft_for

MOST_PASSES = 15
"""Passes over the sample in which directions of activations must settle."""


@dataclass(frozen=True, slots=True)
class Eva(Initialiser):
    """EVA: A spans where a layer's inputs vary most; B = 0.

        A = first r right singular vectors of X - mean(X),   X: inputs of the layer at response tokens

    All layers keep the same rank (rho = 1): devices then train and send equal shapes.

    Cost: forward passes over the sample until the directions settle (peft's tau = 0.99), two at least.
    Source: Paischer et al. 2024, arXiv:2410.07170; incremental by peft.
    """

    name: ClassVar[str] = "eva"
    cancels: ClassVar[bool] = True
    sampled: ClassVar[bool] = True

    def factors(
        self, placed: Any, like: Mapping[str, Factors], seed: int, sample: Sequence[Batch]
    ) -> LayerFactors:
        """Let peft gather the activations.

        Raises:
            ConfigError: if no batch of the sample has as many response tokens as the rank.
            ModelError: if the directions do not settle.
        """
        rank = next(iter(like.values()))[1].shape[0]
        fits = [batch for batch in sample if int((batch.labels != IGNORED).sum()) >= rank]
        _need(fits, self.name)
        device, passes = next(placed.parameters()).device, 0

        def forward(model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
            nonlocal passes
            passes += 1
            if passes > MOST_PASSES * len(fits):
                raise ModelError(
                    f"directions of activations did not settle in {MOST_PASSES} passes over the sample",
                    hint="a lower rank, or a larger data.calibration",
                )
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)

        loader = [
            {"input_ids": one.input_ids, "attention_mask": one.attention_mask, "labels": one.labels}
            for one in (batch.to(device) for batch in fits)
        ]
        with peft_for("the initialiser eva") as peft:
            config = peft.LoraConfig(
                r=rank, target_modules=list(like), init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)
            )
            found = peft.tuners.lora.get_eva_state_dict(
                placed, loader, config, forward_fn=forward, show_progress_bar=False
            )
        return {
            stem: (torch.zeros(left.shape), found[stem].float().cpu().contiguous())
            for stem, (left, _) in like.items()
        }


@dataclass(frozen=True, slots=True)
class LoraGa(Initialiser):
    """LoRA-GA: the first step goes where that of all weights would go.

        G = dL/dW = U S V^T;   A = V_{1..r}^T,   B = k U_{r+1..2r} S_{r+1..2r},   k = outputs^(1/4) / 4

    peft's form: `ArB2r`, `stable` with gamma 16.

    Cost: one back-propagation over the sample, with the gradient of all adapted weights in memory; a randomised
        decomposition a layer.
    Source: Wang et al. 2024, arXiv:2407.05000.
    """

    name: ClassVar[str] = "lora_ga"
    sampled: ClassVar[bool] = True

    def factors(
        self, placed: Any, like: Mapping[str, Factors], seed: int, sample: Sequence[Batch]
    ) -> LayerFactors:
        """Let peft decompose the gradients of copies.

        Raises:
            ConfigError: if there is no sample.
        """
        _need(sample, self.name)
        found = gradients(placed, list(like), sample)
        with peft_for("the initialiser lora_ga") as peft:
            config = peft.LoraGAConfig()
        return {
            stem: by_peft(placed, stem, self.name, seed, found.pop(stem), lora_ga_config=config)
            for stem in like
        }


def gradients(placed: Any, stems: Sequence[str], sample: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Return the mean gradient of the sample's batches by the weights beneath adapters, by peft.

    Returns:
        Float32 [outputs, inputs] by layer, on the CPU.
    """
    names = [f"{stem}.base_layer" for stem in stems]
    device = next(placed.parameters()).device

    def losses() -> None:
        placed.eval()  # peft trains, with dropout; a device does not
        for batch in sample:
            fused_response_loss(placed, batch.to(device)).backward()  # type: ignore[no-untyped-call]

    found = {}
    with peft_for("the initialiser lora_ga") as peft:
        config = peft.LoraConfig(
            target_modules=names, init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
        )
        peft.tuners.lora.loraga.preprocess_loraga(placed, config, losses)
        for stem, name in zip(stems, names, strict=True):
            layer = placed.get_submodule(name)
            if not hasattr(layer, "_peft_loraga_grad"):
                raise ModelError("the sample's loss does not depend on this layer", where=stem)
            gradient = layer._peft_loraga_grad.float().cpu()
            del layer._peft_loraga_grad
            found[stem] = gradient.T if placed.get_submodule(stem).fan_in_fan_out else gradient
    return found


def _need(sample: Sequence[Batch], name: str) -> None:
    if not sample:
        raise ConfigError(
            f"the initialiser {name} needs a sample of the server's own, and there is none that is large enough",
            where="data.calibration",
            hint="set records aside for it, or method.initialiser=pissa, which needs none",
        )
