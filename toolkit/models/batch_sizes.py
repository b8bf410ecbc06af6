"""How an optimizer step is divided into passes and ``generate`` calls, and the next smaller division."""

from dataclasses import dataclass, replace

from toolkit.recipe import Grpo, Recipe, Sft


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that decide how much GPU memory a step takes. The rows of a step stay the recipe's.

    Attributes:
        micro_batch: rows (SFT) or completions (GRPO) in one forward and backward pass.
        accumulation: passes in one optimizer step, over all processes.
        completions: GRPO: completions per ``generate`` call. None: SFT, or vLLM, which decides by itself.
    """

    micro_batch: int
    accumulation: int
    completions: int | None = None

    @property
    def rows(self) -> int:
        """Rows or completions in one optimizer step."""
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
        sft = recipe.sft or Sft()
        return Sizes(sft.batch_size, sft.accumulation)
    grpo = recipe.grpo or Grpo()
    rows = grpo.completions_per_step
    return Sizes(grpo.micro_batch, rows // grpo.micro_batch, None if grpo.rollouts == "vllm" else rows)
