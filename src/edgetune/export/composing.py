"""Characters as a model reads them: what a file says of it, and what its callers do, since llama.cpp does not."""

from __future__ import annotations

import unicodedata

NORMALIZER, NFC = "edgetune.normalizer", "NFC"
"""Key and value that say that the model reads characters composed, which llama.cpp leaves to whoever gives it text."""


def composed(text: str) -> str:
    """Return a text with composed characters (NFC), as llama.cpp must be given it where a tokenizer composes."""
    return unicodedata.normalize("NFC", text)
