"""Benchmark: how fast this machine runs the networks, compared with its measured roofline."""
