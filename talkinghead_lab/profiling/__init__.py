"""Time and memory of runs, and the fitted memory model."""
