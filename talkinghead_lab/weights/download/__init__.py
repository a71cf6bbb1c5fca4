"""Download released weights from the Hugging Face hub."""
