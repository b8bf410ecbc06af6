"""Order of training prompts and images: every one has its turn before one comes again."""

import torch

from toolkit.imagegen.seeds import derive_seed


def shuffled_passes(count: int, start: int, stop: int, seed: int, name: str) -> list[int]:
    """Return a part of an endless sequence of passes over ``range(count)``, each shuffled anew.

    Args:
        count: the number of rows, at least 1.
        start: the first position in the sequence, from 0.
        stop: the position after the last.
        seed: the seed of the sequence.
        name: the purpose, such as "prompts". Sequences of other purposes are independent.

    >>> passes = shuffled_passes(4, 0, 8, seed=0, name="prompts")
    >>> sorted(passes[:4]), passes[3:6] == shuffled_passes(4, 3, 6, seed=0, name="prompts")
    ([0, 1, 2, 3], True)
    """
    rows: list[int] = []
    for turn in range(start // count, -(-stop // count)):
        order = torch.Generator().manual_seed(derive_seed(seed, name, turn))
        shuffled = torch.randperm(count, generator=order).tolist()
        rows += shuffled[max(0, start - turn * count) : stop - turn * count]
    return rows
