"""Aggregators: from the devices' contributions to one update."""

from edgetune.aggregate.mean import Mean

__all__ = ["Mean"]
