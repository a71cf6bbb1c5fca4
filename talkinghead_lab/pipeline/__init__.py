"""The networks put together."""
