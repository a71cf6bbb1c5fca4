"""Linear layers that keep their weight as it is stored."""
