"""Compression methods, one file each; the file name is the public name and `METHOD` is the value."""
