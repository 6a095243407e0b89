"""Flower as the engine that carries the messages; nothing outside this package imports it."""
