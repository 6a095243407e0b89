"""Benchmarks: ratios of two sides taken in turn in one run, never absolute times compared across runs."""
