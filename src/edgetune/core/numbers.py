"""How a stored block writes the numbers its weights share: halves, small integers, and the two 8-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

SMALLEST_HALF = 6e-8
"""Below this magnitude fp16 has nothing to offer (its least subnormal is 2^-24); such a scale becomes zero."""


class Number(Protocol):
    """A stored type of numbers."""

    @property
    def dtype(self) -> torch.dtype:
        """What a tensor of them is held in."""

    @property
    def coarse(self) -> bool:
        """Whether its steps are so wide that both neighbours of a value are worth trying."""

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the stored numbers nearest to float values; out of range becomes the outermost, or infinite."""

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest stored numbers not above float values, as far as there are any."""

    def above(self, values: torch.Tensor) -> torch.Tensor:
        """Return the smallest stored numbers not below float values, as far as there are any."""

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Return what stored numbers mean, float32, exactly."""


@dataclass(frozen=True, slots=True)
class Half:
    """IEEE fp16 of either sign; 0 below 6e-8, infinite above 65504."""

    dtype: torch.dtype = torch.float16
    coarse: bool = False

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return fp16."""
        rounded = values.to(torch.float16)
        return torch.where(rounded.abs() < SMALLEST_HALF, torch.zeros_like(rounded), rounded)

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Return fp16; its steps are fine enough for the nearest."""
        return self.nearest(values)

    def above(self, values: torch.Tensor) -> torch.Tensor:
        """Return fp16; its steps are fine enough for the nearest."""
        return self.nearest(values)

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Return float32."""
        return stored.to(torch.float32)


@dataclass(frozen=True, slots=True)
class Positive:
    """fp16 or bf16 above 0, for readers that take a scale's sign for granted; at least 2^-24, the least of fp16."""

    dtype: torch.dtype = torch.float16
    coarse: bool = False

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return floats of the stored type; what is not above 0 becomes the least."""
        return values.to(self.dtype).clamp(min=2.0**-24)

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Return the nearest; the steps are fine enough."""
        return self.nearest(values)

    def above(self, values: torch.Tensor) -> torch.Tensor:
        """Return the nearest; the steps are fine enough."""
        return self.nearest(values)

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Return float32."""
        return stored.to(torch.float32)


@dataclass(frozen=True, slots=True)
class Whole:
    """Integers in [low, high], within int8's or uint8's range."""

    low: int
    high: int
    coarse: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """int8, held so for all of them."""
        return torch.int8

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return int8."""
        return torch.nan_to_num(values).round().clamp(self.low, self.high).to(torch.int8)

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Return int8."""
        return torch.nan_to_num(values).floor().clamp(self.low, self.high).to(torch.int8)

    def above(self, values: torch.Tensor) -> torch.Tensor:
        """Return int8."""
        return torch.nan_to_num(values).ceil().clamp(self.low, self.high).to(torch.int8)

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Return float32."""
        return stored.to(torch.float32)


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """E8M0 as ggml reads it for doubled levels: 2^(e - 128), e in [1, 254]; 0 and NaN have no code, e = 1 is 2^-127.

    Source: `ggml_e8m0_to_fp32_half`; OCP Microscaling Formats, version 1.0.
    """

    dtype: torch.dtype = torch.uint8
    coarse: bool = True

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return exponents; ties of the ratio go to the even side of rounding."""
        return self._stored(torch.log2(values.abs().double()).round())

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Return exponents."""
        return self._stored(torch.log2(values.abs().double()).floor())

    def above(self, values: torch.Tensor) -> torch.Tensor:
        """Return exponents."""
        return self._stored(torch.log2(values.abs().double()).ceil())

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Return float32."""
        return torch.pow(2.0, stored.double() - 128).to(torch.float32)

    def _stored(self, exponents: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(exponents + 128, nan=1.0).clamp(1, 254).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class UnsignedE4M3:
    """The unsigned 8-bit float of NVFP4, halved as ggml reads it for doubled levels; at most 224.

    Source: `ggml_ue4m3_to_fp32`; the bits are those of torch.float8_e4m3fn, sign clear.
    """

    dtype: torch.dtype = torch.uint8
    coarse: bool = True

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Return the 7 bits of the nearest; negative values become 0."""
        doubled = torch.nan_to_num(values.float() * 2, nan=0.0, posinf=448.0).clamp(0, 448)
        return doubled.to(torch.float8_e4m3fn).view(torch.uint8)

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Return the 7 bits."""
        near = self.nearest(values)
        return torch.where((self.value(near) > values) & (near > 0), near - 1, near)

    def above(self, values: torch.Tensor) -> torch.Tensor:
        """Return the 7 bits."""
        near = self.nearest(values)
        return torch.where((self.value(near) < values) & (near < 126), near + 1, near)

    def value(self, stored: torch.Tensor) -> torch.Tensor:
        """Return float32."""
        return stored.view(torch.float8_e4m3fn).to(torch.float32) / 2


HALF = Half()
POWER_OF_TWO = PowerOfTwo()
UNSIGNED_E4M3 = UnsignedE4M3()
