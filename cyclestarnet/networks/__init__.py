"""Torch: the emulator, the translation networks and their fast forms, and predictors of flux and derivatives."""
