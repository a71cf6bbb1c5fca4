"""The commands of the shell: one module for each group; importing them loads neither networks nor PyTorch.

A group's function `add` adds its commands to the parser and names the function that each runs. That function
imports what it needs itself, so that `--help` and a usage error answer at once.
"""
