"""Retraining of selector and policy in stage 2 on passed images and replayed low-rated anchors, with rollback.

Trained on passed images alone, a selector forgets bad images and passes everything. Ratings below the passing
level are therefore replayed as anchors. Whether the refresh is kept is decided on held-out ratings.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolkit.errors import DataError
from toolkit.imagegen.evaluation.statistics import Figure
from toolkit.imagegen.scorers.fitting import FitSettings, RatedImages, as_floats, load_trained_state, trained_state
from toolkit.imagegen.scorers.metrics import evaluate_policy, evaluate_selector
from toolkit.imagegen.scorers.policy import start_policy_fitting
from toolkit.imagegen.scorers.reward import Threshold, passes
from toolkit.imagegen.scorers.selector import start_fitting
from toolkit.imagegen.scorers.train_scorers import choose_threshold_of, mismatch_pool, passing_level
from toolkit.imagegen.seeds import SEED_RANGE, derive_seed, seed_of
from toolkit.imagegen.settings import bootstrap_of, policy_settings, selector_settings
from toolkit.imagegen.training.arm import ArmContext

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """Settings of a refresh.

    Attributes:
        anchors_fraction: fraction of the training rows that are low-rated anchors, above 0 and below 1.
        tolerance: the largest drop of held-out agreement with which a refresh is kept.
        seed: the seed of the selection of anchors.
    """

    anchors_fraction: float
    tolerance: float
    seed: int


@dataclass(frozen=True, slots=True)
class RefreshOutcome:
    """Held-out agreement before and after, and whether the refreshed parameters are kept."""

    before: Figure
    after: Figure
    kept: bool


def with_anchors(
    passed: RatedImages, ratings: RatedImages, lowest_passing: int, settings: RefreshSettings
) -> RatedImages:
    """Return passed images and ratings below ``lowest_passing``, in the fraction that the settings say.

    Each low level has equally many anchors. Anchors are drawn without replacement as far as they reach.

    Raises:
        DataError: A level below ``lowest_passing`` has no rating.
    """
    if not 0 < settings.anchors_fraction < 1:
        raise ValueError(f"anchors_fraction must be above 0 and below 1, got {settings.anchors_fraction}")
    count = round(len(passed) * settings.anchors_fraction / (1 - settings.anchors_fraction))
    generator = torch.Generator().manual_seed(settings.seed)
    rows: list[int] = []
    for level in range(lowest_passing):
        members = (ratings.levels_N == level).nonzero()[:, 0]
        if not len(members):
            raise DataError(
                "imagegen.anchor_levels_missing",
                "low-rated anchors must have ratings of every level that does not pass",
                place="ratings",
                value=f"no rating of rank {level}",
                remedy="Rate more images, or leave the selector as it is in stage 2.",
            )
        wanted = count // lowest_passing + (level < count % lowest_passing)
        rows.extend(_drawn(members.tolist(), wanted, generator))
    return joined(passed, ratings.take(rows))


def joined(first: RatedImages, second: RatedImages) -> RatedImages:
    """Return the rows of both, with images as floats."""
    return RatedImages(
        torch.cat([as_floats(first.images_NCHW), as_floats(second.images_NCHW)]),
        torch.cat([first.levels_N, second.levels_N]),
        torch.cat([first.weights_N, second.weights_N]),
        first.prompts + second.prompts,
        first.modalities + second.modalities,
        first.groups + second.groups,
    )


def decide(before: Figure, after: Figure, settings: RefreshSettings) -> RefreshOutcome:
    """Keep a refresh if held-out agreement (Spearman's correlation or AUROC) did not drop by more than the tolerance.

    A refresh after which agreement is undefined is not kept.
    """
    kept = after.value is not None and (before.value is None or after.value >= before.value - settings.tolerance)
    return RefreshOutcome(before, after, kept)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The result of a refresh.

    Attributes:
        outcomes: the outcomes of selector and policy. Empty if no image passed.
        threshold: the threshold of the refreshed selector. None if the selector is as it was.
    """

    outcomes: tuple[RefreshOutcome, ...] = ()
    threshold: Threshold | None = None


def refresh_scorers(
    arm_context: ArmContext, images_NCHW: Tensor, prompts: Sequence[str], round_number: int
) -> Refreshed:
    """Train selector and policy on the passed images of a round and as many low-rated anchors as the recipe says.

    A passed image counts as rated at the level that the selector predicts, but at least at the passing level. What
    lowers the agreement with validation ratings is rolled back. A refreshed selector has another scale, so that its
    threshold is chosen again on the same validation ratings.
    """
    with arm_context.models.resident("selector", "policy"):
        return _refresh(arm_context, images_NCHW, prompts, round_number)


def _drawn(rows: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Return ``count`` rows of shuffled passes over all rows."""
    found: list[int] = []
    while len(found) < count:
        found.extend(rows[index] for index in torch.randperm(len(rows), generator=generator).tolist())
    return found[:count]


def _refresh(arm_context: ArmContext, images_NCHW: Tensor, prompts: Sequence[str], round_number: int) -> Refreshed:
    context, keys = arm_context.context, arm_context.context.section.update.refresh
    passed = _passed(arm_context, images_NCHW, prompts)
    if not len(passed):
        return Refreshed()
    seed = derive_seed(seed_of(context.recipe, "ddpo"), "refresh", round_number) % SEED_RANGE
    settings = RefreshSettings(keys.anchors_fraction, tolerance=0.0, seed=seed)
    rows = with_anchors(passed, _in_colour(arm_context.prepared.rows("train")), passing_level(context), settings)
    outcomes = _fit_and_decide(arm_context, rows, settings)
    for name, outcome in outcomes.items():
        what = "kept" if outcome.kept else "rolled back"
        found = [
            figure.value if figure.value is not None else figure.reason for figure in (outcome.before, outcome.after)
        ]
        log.info("refresh in round %d: %s %s, held-out agreement %s, then %s", round_number, name, what, *found)
    threshold = None
    if outcomes["selector"].kept:
        threshold = choose_threshold_of(context, arm_context.prepared, arm_context.models.selector, "validation")
        log.info("refresh in round %d: the selector's threshold is now %.3f", round_number, threshold.value)
    return Refreshed(tuple(outcomes.values()), threshold)


def _fit_and_decide(arm_context: ArmContext, rows: RatedImages, settings: RefreshSettings) -> dict[str, RefreshOutcome]:
    """Train selector and policy on ``rows``. Restore a model whose agreement with validation ratings drops."""
    context, models = arm_context.context, arm_context.models
    keys, levels = context.section.update.refresh, len(context.section.rating_range)
    batch_sizes = {
        "selector": selector_settings(context.recipe).fit.batch_size,
        "policy": policy_settings(context.recipe).fit.batch_size,
    }
    fits = {
        name: FitSettings(keys.epochs, size, keys.learning_rate, seed=settings.seed)
        for name, size in batch_sizes.items()
    }
    validation = arm_context.prepared.rows("validation")
    before = _agreement(arm_context, validation)
    states = {
        name: {key: value.detach().clone() for key, value in trained_state(models.by_name[name]).items()}
        for name in fits
    }
    start_fitting(models.selector, rows, None, fits["selector"]).run()
    start_policy_fitting(models.policy, rows, None, levels, fits["policy"]).run()
    after = _agreement(arm_context, validation)
    outcomes = {name: decide(before[name], after[name], settings) for name in fits}
    for name, outcome in outcomes.items():
        if not outcome.kept:
            load_trained_state(models.by_name[name], states[name])
    return outcomes


def _passed(arm_context: ArmContext, images_NCHW: Tensor, prompts: Sequence[str]) -> RatedImages:
    scored = arm_context.models.selector.score(images_NCHW)
    rows = passes(scored, arm_context.scorers.selector_threshold).nonzero()[:, 0].tolist()
    levels_N = torch.zeros(len(images_NCHW), dtype=torch.long) if scored.levels_N is None else scored.levels_N
    modality_of = {image.prompt: image.modality for image in arm_context.prepared.ratings.images}
    modality_of |= {text: name for name, texts in arm_context.context.section.prompts.items() for text in texts}
    chosen = [prompts[row] for row in rows]
    return RatedImages(
        images_NCHW[rows],
        levels_N[rows].clamp_min(passing_level(arm_context.context)),
        torch.ones(len(rows)),
        tuple(chosen),
        tuple(modality_of[prompt] for prompt in chosen),
        tuple(f"generated {row}" for row in rows),
    )


def _in_colour(rated: RatedImages) -> RatedImages:
    """Return the images with three channels, as generated images have."""
    return replace(rated, images_NCHW=rated.images_NCHW.expand(-1, 3, -1, -1))


def _agreement(arm_context: ArmContext, validation: RatedImages) -> dict[str, Figure]:
    """Return the selector's rank correlation with validation ratings, and the policy's AUROC on their prompts."""
    models, bootstrap = arm_context.models, bootstrap_of(arm_context.context.recipe)
    pool = mismatch_pool(arm_context.prepared)
    return {
        "selector": evaluate_selector(models.selector, validation, bootstrap).overall.spearman,
        "policy": evaluate_policy(models.policy, validation, pool, bootstrap).overall.auroc,
    }
