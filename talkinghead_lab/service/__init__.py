"""The HTTP face: the same pipeline for workflow tools, one generation at a time."""
