"""Files, shapes and devices."""
