"""Text, image and speech encoders."""
