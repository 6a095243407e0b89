"""Published systems as values: one small file each, found by file name."""
