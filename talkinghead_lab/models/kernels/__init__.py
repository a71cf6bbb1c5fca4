"""Attention and fused kernels."""
