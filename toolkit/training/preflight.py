"""Checks before the first step: the model uses the images, and an optimizer step on the longest rows fits the GPU.

Without the preflight step, the first out-of-memory error might come after hours, at the first long row. The step uses a
separate trainer and model, which are freed afterwards. Weights, optimizer, random state, row order and metrics of the
training are the same as without the step.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from toolkit.data.sample import Sample
from toolkit.distribution import pip_install
from toolkit.errors import TrainingError, warn
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend
from toolkit.models.backend import Completion, Policy, RewardScorer, Row, TrainingJob
from toolkit.models.lengths import RowLengths, check_lengths
from toolkit.models.oom import attempt, recipe_sizes
from toolkit.models.prompts import Prompts
from toolkit.runfolder import world_size
from toolkit.runfolder.usage import begin_peak, gpu_peaks
from toolkit.training.results import PreflightResult

log = logging.getLogger(__name__)
MAX_ROWS_SEARCHED = 200
"""Rows in which two with different images are searched for."""


def check_rows(
    context: Context,
    backend: Backend,
    policy: Policy,
    prompts: Prompts,
    samples: Sequence[Sample],
    answer_tokens: int | None = None,
) -> RowLengths:
    """Check that the rows fit into ``model.max_tokens``, and that the model uses their images.

    Args:
        context: The run. A stop request ends the count.
        backend: The backend that loaded the policy.
        policy: The policy before training.
        prompts: The prompts of the recipe.
        samples: The training rows.
        answer_tokens: Tokens of a generated answer. None: the reference answer.

    Raises:
        DataError: Rows are too long, or contain a special token. See ``check_lengths``.
        TrainingError: The model ignores the images. See ``check_images_change_loss``.
    """
    limit = context.recipe.model.max_tokens
    check = context.check_stop_before_first_step
    lengths = check_lengths(policy.processor, prompts, samples, limit, answer_tokens, on_row=check)
    tokens = lengths.tokens
    log.info("%d rows, median %d and at most %d tokens", tokens.rows, tokens.median, tokens.max)
    check_images_used(backend, policy, prompts, samples)
    return lengths


def check_images_used(backend: Backend, policy: Policy, prompts: Prompts, samples: Sequence[Sample]) -> bool:
    """Swap the images of two rows and check that the loss of their answers changes.

    Returns:
        Whether the check was made. It needs two rows with the same number of images, which differ, and enough GPU
        memory. Otherwise the log says why it was skipped.

    Raises:
        TrainingError: The loss did not change. See ``check_images_change_loss``.
    """
    pair = _different_images(samples)
    if pair is None:
        log.info("image check skipped: no two rows have the same number of images with different content")
        return False
    rows = [prompts.row(sample, answer=True) for sample in pair]
    checked = attempt(lambda: check_images_change_loss(lambda row: backend.answer_loss(policy, row), rows))
    if not checked:
        warn(
            "training.images_not_checked",
            "out of memory while checking that answers depend on the images. The check is skipped",
            place="training",
        )
    return bool(checked)


def check_images_change_loss(loss: Callable[[Row], float], rows: Sequence[Row]) -> bool:
    """Swap the images of two rows. Return True if the loss of an answer changes.

    Args:
        loss: ``answer_loss`` of a row. It is computed twice for the same row, because sums on a GPU may differ in their
            last bits. Only a larger change counts.
        rows: Two rows with answers and the same number of images, which differ.

    Raises:
        TrainingError: Neither loss changed. An example is unsloth#11031: GRPO's log-probabilities without any pixels.
    """
    for row, other in (rows, rows[::-1]):
        first, repeated = loss(row), loss(row)
        if abs(loss(replace(row, images=other.images)) - first) > abs(repeated - first):
            return True
    raise images_ignored_error("two rows with swapped images")


def images_ignored_error(place: str) -> TrainingError:
    """Return the error for a model whose log-probabilities do not depend on its images."""
    return TrainingError(
        "training.images_ignored",
        "log-probabilities of answers must depend on the images, but no pixels reach the model (see unsloth#11031)",
        place=place,
        remedy=f'Install the tested versions ({pip_install()}), or set backend = "hf".',
    )


def _different_images(samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    first = None
    for number in range(min(len(samples), MAX_ROWS_SEARCHED)):
        sample = samples[number]
        if not sample.images:
            continue
        if first is None:
            first = sample
        elif len(sample.images) == len(first.images) and sample.images != first.images:
            return first, sample
    return None


def preflight_rows(longest: tuple[int, ...], wanted: bool | None) -> tuple[int, ...]:
    """Return ``longest`` if a preflight step is ``wanted`` (default: on a GPU), otherwise no rows.

    Several processes skip it, because they cannot change their sizes after an out-of-memory error.
    """
    if wanted is None:
        wanted = torch.cuda.is_available()
    return longest if wanted and world_size() == 1 else ()


def preflight_job(job: TrainingJob, stage: str) -> TrainingJob:
    """Return the job of one step on the longest rows of ``job``.

    SFT and DPO: each micro-batch consists of the longest rows. GRPO: the longest prompts, with completions that run to
    the token limit and are not scored.
    """
    if stage != "grpo":
        sizes = job.sizes or recipe_sizes(job.recipe, stage)
        used, count = sizes.micro_batch, sizes.rows
    else:
        used = count = job.recipe.grpo_settings.prompts_per_step
    longest, rows = job.longest[:used], job.rows
    return replace(
        job,
        rows=lambda number: rows(longest[number % len(longest)]),
        count=count,
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
    result = PreflightResult(round(time.monotonic() - begun, 3), **gpu_peaks())
    peak = result.peak_reserved_bytes
    reserved = "" if peak is None else f", at most {peak / 2**30:.2f} GiB of the GPU reserved"
    log.info("preflight step: one step on the longest rows took %.1f s%s", result.seconds, reserved)
    return result


def _zero_scores(weights: Mapping[str, float]) -> Any:
    def score(
        numbers: Sequence[int], completions: Sequence[Completion]
    ) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
        return [dict.fromkeys(weights, 0.0) for _ in completions], {}

    return score
