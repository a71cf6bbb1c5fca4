"""Find, read and convert weight files."""
