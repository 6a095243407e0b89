"""The same federation across hosts: a server and devices that only exchange messages."""
