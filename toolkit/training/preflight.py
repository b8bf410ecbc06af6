"""The preflight step: one whole optimizer step on the longest rows, before the first one, whose result is thrown away.

An out-of-memory error shows in the first minute, not after hours at the first long row. The step has a trainer and a
model of its own, which are dropped afterwards: weights, optimizer, random state, order of the rows and metrics of the
training are those of a run without it.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from toolkit.models.backend import Completion, RewardScorer, TrainingJob
from toolkit.models.batch_sizes import recipe_sizes
from toolkit.models.oom import attempt
from toolkit.recipe import Grpo
from toolkit.runfolder import Record
from toolkit.runfolder.usage import begin_peak, gpu_peaks

log = logging.getLogger(__name__)


def preflight_job(job: TrainingJob, stage: str) -> TrainingJob:
    """Return the job of one step on the longest rows of ``job``.

    SFT: each micro-batch has rows from among the longest that fill one. GRPO: the longest prompts, with completions
    that run to the limit and are not judged.
    """
    sizes, grpo = job.sizes or recipe_sizes(job.recipe, stage), job.recipe.grpo or Grpo()
    longest = job.longest[: sizes.micro_batch if stage == "sft" else grpo.prompts_per_step]
    rows = job.rows
    return replace(
        job,
        rows=lambda number: rows(longest[number % len(longest)]),
        count=sizes.rows if stage == "sft" else grpo.prompts_per_step,
        callbacks=(),
        scorer=None if job.scorer is None else RewardScorer(job.scorer.weights, _unjudged(job.scorer.weights)),
        preflight=True,
    )


def run_preflight_step(trainer: Any) -> Record | None:
    """Make the one step of a trainer built from a ``preflight_job``.

    Returns:
        seconds of the step, and the peaks of the GPU memory in bytes (None without a GPU); None: out of memory. The
        seconds are an upper bound, except that rewards are not computed: they include the longest rows, the making of
        the optimizer, and whatever is compiled.
    """
    begin_peak()
    begun = time.monotonic()
    if attempt(trainer.train) is None:
        return None
    found = {"seconds": round(time.monotonic() - begun, 3), **gpu_peaks()}
    peak = found["peak_reserved_bytes"]
    memory = "" if peak is None else f", at most {peak / 2**30:.2f} GiB of the GPU reserved"
    log.info("preflight step: one step on the longest rows took %.1f s%s", found["seconds"], memory)
    return found


def _unjudged(weights: Mapping[str, float]) -> Any:
    def score(
        numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        return [dict.fromkeys(weights, 0.0) for _ in completions], {}

    return score
