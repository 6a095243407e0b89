"""Base models and their digests."""
