"""How fast this machine runs the networks, beside the fastest that its own ceilings allow."""
