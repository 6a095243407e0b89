from __future__ import annotations

import pytest

from edgetune.core.errors import ConfigError
from edgetune.core.sizes import parse_budget


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4.5bpw", 562_500),
        ("4.5 BPW", 562_500),
        ("8bpw", 10**6),
        ("1.2GB", 1_200_000_000),
        ("700kB", 700_000),
    ],
)
def test_a_budget_is_bytes_or_bits_a_weight(text: str, size: int) -> None:
    assert parse_budget(text, 10**6) == size


@pytest.mark.parametrize("text", ["", "bpw", "-1GB", "0bpw", "4,5bpw", "4.5bpw of it", "1e3bpw"])
def test_anything_else_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--size"):
        parse_budget(text, 10**6, "--size")
