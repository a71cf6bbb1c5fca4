"""Weights that visit the device."""
