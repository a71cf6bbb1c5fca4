"""How the bundled model is made: rendered cartoon presenters, synthesised speech, motion, and training."""
