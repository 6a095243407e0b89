"""One choice of layers for a whole run, by how their outputs differ and how the loss curves (FedPepTAO)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum
from typing import Any, ClassVar

import numpy as np
import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import ConfigError
from edgetune.core.part import GRADIENTS, PROMPTS, by_name
from edgetune.core.pieces import Layers
from edgetune.core.tuned import Tuned
from edgetune.survey.curvature import Curvature
from edgetune.survey.keep import KEEP_RULES, Density, KeepRule
from edgetune.survey.similarity import similarity_score
from edgetune.survey.survey import Masks, Memory, Scores, Survey

MASK = "survey.layers"


@dataclass(frozen=True, slots=True)
class PromptLayers(Survey):
    """Before the first round every device scores the layers; the server keeps the best, alike for all and for good.

        score_l = sum_c p_c score_cl,   ratio = sum_c p_c ratio_c,   p_c = n_c / sum n over those that answered
        kept: the first round(ratio L) layers by score, at least one

    A layer's score is of its outputs without any prompts (`similarity_score`); the last layer has none and ranks last,
    as in the reference code. Score and ratio come from unrelated measures: the Hessian says how many layers, never
    which. If no device answers, the next round asks again.

    Args:
        keep: how a device finds the ratio.
        ratio: in (0, 1], in place of what devices would find; 0 lets them find it.
        steps: products with the Hessian for a spectrum, at least 2.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: a forward pass of one batch, and if there is no ratio 4 more a product (see rule and `Curvature`): 50 are as
        much as 90 training steps, in four times their memory. L numbers up (L - 1 and the ratio), L bits down.
    Source: Che et al. 2023, arXiv:2310.15080; llm-eff/FedPepTAO (all clients score there; the ratio comes from those
        that are sampled after 10 rounds; the two are combined by hand).
    """

    keep: KeepRule = field(default_factory=Density)
    ratio: float = 0.0
    steps: int = 50
    options: ClassVar[Mapping[str, str]] = {
        "keep_rule": "keep",
        "keep_ratio": "ratio",
        "spectrum_steps": "steps",
    }
    least_batch: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1 or self.steps < 2:
            raise ConfigError(
                f"keeping layers needs a ratio from 0 to 1 and a spectrum of at least 2 steps, "
                f"not {self.ratio}, {self.steps}"
            )

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "choosing layers by the similarity of their outputs"

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, and prompts, without which the model is the base."""
        return frozenset({GRADIENTS, PROMPTS})

    def settings(self) -> dict[str, Any]:
        """Return the options; a rule by its name."""
        return Survey.settings(self) | {"keep_rule": self.keep.name}

    def with_option(self, option: str, value: object) -> PromptLayers:
        """Return this part with one option changed; a rule is found by its name."""
        if option == "keep_rule":
            return replace(self, keep=by_name(str(value), KEEP_RULES, "rule for how many layers are kept")())
        return Survey.with_option(self, option, value)

    def due(self, round: int, memory: Memory) -> bool:
        """Until layers were chosen."""
        return not bool(memory[MASK].any())

    def size(self, layers: int) -> int:
        """One number a layer but the last, and the ratio if it is not given."""
        return layers - 1 + (not self.ratio)

    def measure(self, tuned: Tuned, layers: Layers, batches: Iterator[Batch], objective: Objective) -> Scores:
        """Return the scores of all layers but the last, and the ratio if it is not given, of one batch."""
        weight = next(weight for _, weight in tuned.named_weights())
        batch = next(batches).to(weight.device)
        body = tuned.model.get_base_model().base_model  # type: ignore[operator]
        with torch.no_grad():
            outputs = body(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states[1:-1]
            found = [similarity_score(one, batch.attention_mask) for one in outputs]
        if not self.ratio:
            found.append(self.keep.ratio(Curvature(tuned, batch, objective), self.steps))
        return np.array(found, np.float32)

    def start(self, layers: int) -> Memory:
        """Return `survey.layers`, uint8 [L], of which none is chosen yet."""
        return {MASK: torch.zeros(layers, dtype=torch.uint8)}

    def choose(
        self,
        devices: Sequence[int],
        scores: Mapping[int, Scores],
        examples: Mapping[int, int],
        layers: int,
        memory: Memory,
    ) -> Masks:
        """Return the layers of the run for every device, once they are chosen."""
        if self.due(0, memory):
            devices = [device for device in devices if device in scores]
            if not devices:
                return {}
            total = sum(examples[device] for device in devices)
            mean = [
                fsum(examples[device] / total * float(scores[device][at]) for device in devices)
                for at in range(self.size(layers))
            ]
            ratio = self.ratio or min(max(mean[-1], 0.0), 1.0)
            ranked = [*np.argsort([-one for one in mean[: layers - 1]], kind="stable").tolist(), layers - 1]
            memory[MASK][ranked[: max(1, int(ratio * layers + 0.5))]] = 1
        return {device: memory[MASK].numpy().astype(bool) for device in devices}
