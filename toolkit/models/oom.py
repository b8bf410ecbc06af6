"""Out-of-memory (OOM) errors of a GPU, and the limit of completions per ``generate`` call."""

import gc
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_UNTYPED = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Messages of CUDA's own libraries, which torch raises as a plain RuntimeError."""


class BatchLimit:
    """The largest number of completions per ``generate`` call. It only shrinks.

    Attributes:
        limit: The limit. None: no limit yet.
        errors: The number of out-of-memory errors so far.
    """

    def __init__(self, limit: int | None = None, notify: Callable[[int], None] | None = None) -> None:
        self.limit, self.errors = limit, 0
        self._notify = notify

    def size_for(self, rows: int) -> int:
        """Return the batch size to use for ``rows`` rows."""
        return rows if self.limit is None else min(rows, self.limit)

    def halve(self, rows: int) -> bool:
        """Halve the limit after ``rows`` did not fit. Return False if ``rows`` was 1."""
        self.errors += 1
        if rows <= 1:
            return False
        self.limit = (rows + 1) // 2
        if self._notify is not None:
            self._notify(self.limit)
        return True


def attempt(work: Callable[[], Result]) -> Result | None:
    """Return the result of ``work``, or None after an out-of-memory error, with the GPU memory freed."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Inside the handler, the traceback would still refer to the frames, and the frames to the activations.
    free()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU ran out of memory. If the CPU runs out of memory, the process ends without an error."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _UNTYPED)


def free() -> None:
    """Free the GPU memory that torch caches without using it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
