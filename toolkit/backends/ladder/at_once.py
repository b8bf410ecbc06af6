"""How many rows go through a model at once: as many as asked, and half as many each time the memory is too small."""

import gc
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

_UNTYPED = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What CUDA's own libraries say, which torch hands on as a plain RuntimeError."""


class AtOnce:
    """The most rows at once; it only shrinks. ``errors`` counts how often memory was too small."""

    def __init__(self) -> None:
        self.most: int | None = None
        self.errors = 0

    def of(self, rows: int) -> int:
        """How many of so many rows may go at once."""
        return rows if self.most is None else min(rows, self.most)

    def halve(self, rows: int) -> bool:
        """Note that so many at once were too many; False where that was one row, and nothing is left to halve."""
        self.errors += 1
        if rows > 1:
            self.most = (rows + 1) // 2
        return rows > 1


def attempt(work: Callable[[], Found]) -> Found | None:
    """What ``work`` gives; None where it ran out of memory, all of which is given back."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free()  # not in the handler: the error holds the frames, and they hold what was being computed
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was too small. That of the machine itself ends a process without an error."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _UNTYPED)


def free() -> None:
    """Give back what torch keeps of the GPU without using it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
