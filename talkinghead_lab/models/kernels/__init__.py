"""Attention kernels and fused block layers."""
