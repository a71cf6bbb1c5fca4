"""Merge low-rank adapters (LoRA, arXiv 2106.09685, and its variants) into weights."""

from talkinghead_lab.weights.lora.merge import merge_lora

__all__ = ["merge_lora"]
