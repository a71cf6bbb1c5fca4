"""Read and write images, video and sound."""
