"""What devices are asked before a round, and which layers each of them trains by it."""

from edgetune.survey.gradient_norms import GradientNorms
from edgetune.survey.keep import KEEP_RULES, Density, Gap
from edgetune.survey.prompt_layers import PromptLayers
from edgetune.survey.survey import Masks, Memory, Survey

SURVEYS: tuple[type[Survey], ...] = (GradientNorms, PromptLayers)

__all__ = [
    "KEEP_RULES",
    "SURVEYS",
    "Density",
    "Gap",
    "GradientNorms",
    "Masks",
    "Memory",
    "PromptLayers",
    "Survey",
]
