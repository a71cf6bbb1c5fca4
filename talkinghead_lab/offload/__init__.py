"""Memory requirements, and weights that are on the device only while in use."""
