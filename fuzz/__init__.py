"""Structure-aware fuzzing of everything that comes from a file or a network; see `python -m fuzz --help`."""
