"""How fast the tiny model learns: a warm-up, then a cosine's half down to nothing."""

import math


def rate(step: int, steps: int, warmup: int = 100) -> float:
    """The share of the learning rate at a step, from 0 to 1."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
