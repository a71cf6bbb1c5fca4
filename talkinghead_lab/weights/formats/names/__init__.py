"""Tell from names and shapes of tensors what a weight file is, and give the tensors their released names."""
