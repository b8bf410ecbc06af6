"""Assignment of predicted lesions to reference lesions, and the cost of missing and extra ones."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
U = TypeVar("U")


def match(
    references: Sequence[T], answers: Sequence[U], score: Callable[[T, U], float]
) -> tuple[list[tuple[int, int]], float]:
    """Return the one-to-one assignment with the largest sum of scores (Kuhn 1955), and its mean score.

    The sum is divided by the length of the longer list, so a missing and an extra lesion cost the same. Scores are in
    [0, 1]. Pairs with score 0 are left out.

    >>> match([1, 5], [5, 1, 9], lambda a, b: float(a == b))
    ([(0, 1), (1, 0)], 0.6666666666666666)
    """
    if not references or not answers:
        return [], 0.0
    table = np.array([[score(one, other) for other in answers] for one in references], dtype=float)
    if table.size == 1:
        pairs = [(0, 0)]
    else:
        from scipy.optimize import linear_sum_assignment  # takes 0.25 s to import and is rarely needed

        pairs = [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True)]
    pairs = [pair for pair in pairs if table[pair] > 0]
    return pairs, float(sum(table[pair] for pair in pairs)) / max(table.shape)
