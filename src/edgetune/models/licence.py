"""What a base model's own files say of its licence."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from edgetune.core.gguf_read import read_metadata

CARD = "README.md"
LONGEST = 1 << 20
"""Bytes of a model card that are read."""
FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\s", re.DOTALL)
"""Metadata of a model card."""
KEY = "general.license"
OTHER, UNKNOWN = "other", "unknown"
"""What a card says beside `license_name`, and what ours say where a base named nothing."""


def licence_of(folder: Path) -> str:
    """Return the licence that a base names, as its maker wrote it; empty if it names none.

    Args:
        folder: a model folder, whose card is read, or a GGUF file.
    Cost: reads a card, or a file's header.
    Source: huggingface.co/docs/hub/model-cards (`license`); GGUF's `general.license`.
    """
    if folder.is_file():
        found = read_metadata(folder).get(KEY, "")
    else:
        card = folder / CARD
        front = FRONT.match(card.read_bytes()[:LONGEST].decode(errors="replace")) if card.is_file() else None
        try:
            said = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError:
            said = None
        facts = said if isinstance(said, dict) else {}
        found = facts.get("license", "")
        if found == OTHER:
            found = facts.get("license_name", OTHER)
        elif found == UNKNOWN:
            found = ""
    return found if isinstance(found, str) and found.isprintable() else ""
