"""Updates of a generator: SFT and DDPO with guards and checkpoints."""
