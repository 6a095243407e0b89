"""Names of what a run leaves in its folder: known before anything heavy is imported."""

from __future__ import annotations

LEDGER, MODEL, EVENTS, MANIFEST = "tuned.ledger", "model.gguf", "events.jsonl", "manifest.json"
SOLVED = "blocks"
"""Folder of solved blocks, while compression is under way."""
PRUNED = "pruned"
"""Folder of a pruned model: the run's base where it prunes first."""
