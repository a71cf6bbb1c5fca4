"""The networks, built from configs, with submodules named like the released tensors."""
