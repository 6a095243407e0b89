"""The C kernel behind the directions, reached by pointers: no torch ABI, no Python in the inner loops."""

from edgetune.directions.native.jobs import ALIGNMENT, DTYPES, TensorDirections, Terms, serves
from edgetune.directions.native.library import LEVELS, best_level, library

__all__ = ["ALIGNMENT", "DTYPES", "LEVELS", "TensorDirections", "Terms", "best_level", "library", "serves"]
