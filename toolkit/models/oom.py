"""Out-of-memory (OOM) errors of a GPU, and the sizes into which an optimizer step and a batch are divided."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from toolkit.recipe import Recipe

Result = TypeVar("Result")

_UNTYPED = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Messages of CUDA's own libraries, which torch raises as a plain RuntimeError."""


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


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that decide how much GPU memory a step takes. The rows of a step stay the recipe's.

    Attributes:
        micro_batch: rows (SFT), pairs (DPO) or completions (GRPO) in one forward and backward pass.
        accumulation: passes in one optimizer step, over all processes.
        completions: GRPO: completions per ``generate`` call. None: SFT, DPO, or vLLM, which decides by itself.
    """

    micro_batch: int
    accumulation: int
    completions: int | None = None

    @property
    def rows(self) -> int:
        """Rows, pairs or completions in one optimizer step."""
        return self.micro_batch * self.accumulation

    def smaller(self) -> "Sizes | None":
        """Return the sizes to use after an out-of-memory error, or None if nothing can be halved.

        The micro-batch becomes the largest divisor of the step's rows that is at most half of it. If it is 1 already,
        the completions per call are halved: a smaller rollout leaves the GPU memory less fragmented.
        """
        if self.micro_batch > 1:
            micro_batch = next(size for size in range(self.micro_batch // 2, 0, -1) if self.rows % size == 0)
            return replace(self, micro_batch=micro_batch, accumulation=self.rows // micro_batch)
        if self.completions is not None and self.completions > 1:
            return replace(self, completions=(self.completions + 1) // 2)
        return None


def recipe_sizes(recipe: Recipe, stage: str) -> Sizes:
    """Return the sizes in a recipe."""
    if stage == "sft":
        sft = recipe.sft_settings
        return Sizes(sft.batch_size, sft.accumulation)
    if stage == "dpo":
        dpo = recipe.dpo_settings
        return Sizes(dpo.batch_size, dpo.accumulation)
    grpo = recipe.grpo_settings
    rows = grpo.completions_per_step
    return Sizes(grpo.micro_batch, rows // grpo.micro_batch, None if grpo.rollouts == "vllm" else rows)
