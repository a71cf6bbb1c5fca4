"""How the embedded checkpoint is made: the drawn presenter, its speech, its motion, and the training."""
