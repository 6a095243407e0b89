"""The same federation across hosts: a server and devices that only exchange messages."""

PORT = 9092
"""Of a server, where none is said."""
