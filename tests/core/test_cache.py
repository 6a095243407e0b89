"""The cache's folder follows the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.cache import cache_folder


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [
        ("/a/b", "/x", "/a/b/models"),
        ("", "/x", "/x/edgetune/models"),
        ("", "relative", "/h/.cache/edgetune/models"),
        ("", "", "/h/.cache/edgetune/models"),
        ("~/c", "", "/h/c/models"),
    ],
)
def test_the_folder_is_the_own_variable_then_the_systems_then_the_users(
    own: str, base: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", "/h")
    assert cache_folder("models") == Path(expected)
