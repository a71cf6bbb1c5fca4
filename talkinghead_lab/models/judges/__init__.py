"""Networks that measure the quality of videos."""
