"""One thread at a time through what changes the whole process while it runs."""

from __future__ import annotations

import threading

LIBRARIES = threading.RLock()
"""Held while transformers or peft build a model: they replace functions and settings of the process meanwhile (tying,
initialisation, the default type, warning filters), which two threads would put back in the wrong order, for good."""
