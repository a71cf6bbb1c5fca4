"""The networks, config-driven and named like the released tensors; they import no media module."""
