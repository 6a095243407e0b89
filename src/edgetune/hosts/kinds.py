"""What messages between hosts are called."""

from __future__ import annotations

OPEN, OPENED = "open", "opened"
"""The run, told to a device; what the device has, told to the server."""
ANSWER, REPLY = "answer", "reply"
"""A device's part of a round, and its change (or what was measured before one)."""
RECALL = "recall"
"""From a device: it has not the state that the message builds on."""
NO, ERROR = "no", "error"
"""From a device: it will not take part now, or never."""
OVER, BYE = "over", "bye"
"""The run has ended; the device has heard it."""
