"""Numbers as a person reads them: sizes, durations, losses, factors."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
"""Shown where nothing was measured."""
UNITS = ("kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """Return bytes with a decimal unit (1 kB = 1000 bytes): `17.6 kB`, `1.1 MB`, `340 MB`."""
    value, unit = float(count), "B"
    for larger in UNITS:
        if round(value) < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}" if unit != "B" and round(value, 1) < 100 else f"{value:.0f} {unit}"


def size_unrounded(count: float) -> str:
    """Return bytes with a decimal unit and every digit that is not 0: `1.25 MB`, `200 MB`, `0 B`."""
    value, unit = float(count), "B"
    for larger in UNITS:
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{plain(value)} {unit}"


def plain(value: float) -> str:
    """Return a number without decimals that say nothing: `2.5`, `0.1`, `40`."""
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Return seconds as `0.42 s`, `12.3 s`, `4 min 05 s` or `2 h 13 min`."""
    if not math.isfinite(seconds):
        return MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def loss(value: float | None) -> str:
    """Return a loss in nats with three decimals, a dash if it was not measured."""
    return _number(value, "{:.3f}")


def perplexity(value: float | None) -> str:
    """Return a perplexity to about four digits, a dash if it was not measured."""
    if value is None or not math.isfinite(value) or value < 10:
        return _number(value, "{:.3f}")
    if value < 1000:
        return _number(value, "{:.2f}")
    return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def rouge(value: float | None) -> str:
    """Return a Rouge-L F1 (0 to 100) with one decimal, a dash if it was not measured."""
    return MISSING if value is None or math.isnan(value) else _number(value, "{:.1f}")


def divergence(value: float | None) -> str:
    """Return a KL divergence in nats as `3.9e-04`, a dash if it was not measured; rounding can leave less than 0."""
    return MISSING if value is None or math.isnan(value) else _number(max(value, 0.0), "{:.1e}")


def percent(value: float | None) -> str:
    """Return a share, 0 to 1, in per cent with two decimals, a dash if it was not measured."""
    return MISSING if value is None or math.isnan(value) else _number(100 * value, "{:.2f} %")


def residual(value: float | None) -> str:
    """Write a norm of weights, or a dash."""
    return _number(value, "{:.2g}")


def share(part: float, whole: float) -> str:
    """Return how much `part` is of `whole`: `1/340`, `1/2.6`, `1.8 times`, `the same`."""
    if part <= 0 or whole <= 0:
        return MISSING
    ratio = whole / part
    if 0.95 < ratio < 1.05:
        return "the same"
    return f"1/{_digits(ratio)}" if ratio > 1 else f"{_digits(1 / ratio)} times"


def _digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:,.0f}"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    return form.format(value) if math.isfinite(value) else "∞"


def finite(value: Any) -> Any:
    """Return plain JSON values with None in place of NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
