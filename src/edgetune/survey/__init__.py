"""What devices are asked before a round, and which layers each of them trains by it."""

from edgetune.survey.gradient_norms import GradientNorms
from edgetune.survey.survey import Masks, Memory, Survey

SURVEYS: tuple[type[Survey], ...] = (GradientNorms,)

__all__ = ["SURVEYS", "GradientNorms", "Masks", "Memory", "Survey"]
