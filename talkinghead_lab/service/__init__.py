"""HTTP service for workflow tools: the same pipeline, one generation at a time."""
