"""Pixels and sound, in and out."""
