"""What weight files hold: containers, stored types, and names of tensors."""
