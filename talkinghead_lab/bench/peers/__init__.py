"""The same forward pass by other implementations, on the same tensors and in the same process."""
