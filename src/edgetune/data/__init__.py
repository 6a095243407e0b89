"""Records, splits, prompts and batches."""
