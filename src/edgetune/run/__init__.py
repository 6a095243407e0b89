"""Drivers: one device, a federation in one process, the staged pipeline. No mathematics here."""
