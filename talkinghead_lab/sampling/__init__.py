"""From noise to latents to frames."""
