"""The preflight step: an optimizer step on the longest rows before training, whose result is discarded.

An out-of-memory error then occurs in the first minute, not after hours at the first long row. The step uses a separate
trainer and model, which are freed afterwards. Weights, optimizer, random state, row order and metrics of the training
are the same as without the step.
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
from toolkit.runfolder.usage import begin_peak, gpu_peaks
from toolkit.training.results import PreflightResult

log = logging.getLogger(__name__)


def preflight_job(job: TrainingJob, stage: str) -> TrainingJob:
    """Return the job of one step on the longest rows of ``job``.

    SFT: each micro-batch consists of the longest rows. GRPO: the longest prompts, with completions that run to the
    token limit and are not scored.
    """
    sizes, grpo = job.sizes or recipe_sizes(job.recipe, stage), job.recipe.grpo or Grpo()
    longest = job.longest[: sizes.micro_batch if stage == "sft" else grpo.prompts_per_step]
    rows = job.rows
    return replace(
        job,
        rows=lambda number: rows(longest[number % len(longest)]),
        count=sizes.rows if stage == "sft" else grpo.prompts_per_step,
        callbacks=(),
        scorer=None if job.scorer is None else RewardScorer(job.scorer.weights, _zero_scores(job.scorer.weights)),
        preflight=True,
    )


def run_preflight_step(trainer: Any) -> PreflightResult | None:
    """Run the one step of a trainer that was built from a ``preflight_job``.

    Returns:
        The seconds of the step and the peaks of GPU memory in bytes (None without a GPU). None if out of memory. The
        seconds are an upper bound, because they include creation of the optimizer and compilation. They do not include
        rewards.
    """
    begin_peak()
    begun = time.monotonic()
    if attempt(trainer.train) is None:
        return None
    found = PreflightResult(round(time.monotonic() - begun, 3), **gpu_peaks())
    peak = found.peak_reserved_bytes
    reserved = "" if peak is None else f", at most {peak / 2**30:.2f} GiB of the GPU reserved"
    log.info("preflight step: one step on the longest rows took %.1f s%s", found.seconds, reserved)
    return found


def _zero_scores(weights: Mapping[str, float]) -> Any:
    def score(
        numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        return [dict.fromkeys(weights, 0.0) for _ in completions], {}

    return score
