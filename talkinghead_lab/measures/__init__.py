"""How good a video is."""
