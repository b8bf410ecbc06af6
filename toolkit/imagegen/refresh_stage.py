"""Retraining selector and policy between rounds on passed images, with anchors, and rolling back what got worse."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolkit.imagegen.arm_context import ArmContext
from toolkit.imagegen.figure import Figure
from toolkit.imagegen.fitting import FitSettings, load_trained_state, trained_state
from toolkit.imagegen.mismatches import MismatchPool
from toolkit.imagegen.policy import start_policy_fitting
from toolkit.imagegen.rated import RatedImages
from toolkit.imagegen.refresh import RefreshOutcome, RefreshSettings, decide, with_anchors
from toolkit.imagegen.reward import passes
from toolkit.imagegen.sampling import derive_seed
from toolkit.imagegen.scorer_evaluation import evaluate_policy, evaluate_selector
from toolkit.imagegen.scorer_stage import choose_threshold_of, passing_level
from toolkit.imagegen.selector import start_fitting
from toolkit.imagegen.settings import bootstrap_of, policy_settings, seed_of, selector_settings
from toolkit.imagegen.threshold import Threshold

log = logging.getLogger(__name__)

_SEED_RANGE = 2**31


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The result of a refresh.

    Attributes:
        outcomes: of selector and policy. Empty if no image passed.
        threshold: of the refreshed selector. None if the selector is as it was.
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


def _refresh(arm_context: ArmContext, images_NCHW: Tensor, prompts: Sequence[str], round_number: int) -> Refreshed:
    context, keys = arm_context.context, arm_context.context.section.update.refresh
    passed = _passed(arm_context, images_NCHW, prompts)
    if not len(passed):
        return Refreshed()
    seed = derive_seed(seed_of(context.recipe, "ddpo"), "refresh", round_number) % _SEED_RANGE
    settings = RefreshSettings(keys.anchors_fraction, seed=seed)
    rows = with_anchors(passed, _in_colour(arm_context.prepared.rows("train")), passing_level(context), settings)
    batch = {
        "selector": selector_settings(context.recipe).fit.batch_size,
        "policy": policy_settings(context.recipe).fit.batch_size,
    }
    fits = {name: FitSettings(keys.epochs, size, keys.learning_rate, seed=seed) for name, size in batch.items()}
    validation, models = arm_context.prepared.rows("validation"), arm_context.models
    levels = len(context.section.rating_range)
    before = _agreement(arm_context, validation)
    states = {name: dict(trained_state(models.by_name[name])) for name in fits}
    states = {name: {key: value.detach().clone() for key, value in state.items()} for name, state in states.items()}
    start_fitting(models.selector, rows, None, fits["selector"]).run()
    start_policy_fitting(models.policy, rows, None, levels, fits["policy"]).run()
    after = _agreement(arm_context, validation)
    outcomes = {name: decide(before[name], after[name], settings) for name in fits}
    for name, outcome in outcomes.items():
        if not outcome.kept:
            load_trained_state(models.by_name[name], states[name])
        what = "kept" if outcome.kept else "rolled back"
        found = [
            figure.value if figure.value is not None else figure.reason for figure in (outcome.before, outcome.after)
        ]
        log.info("refresh in round %d: %s %s, held-out agreement %s, then %s", round_number, name, what, *found)
    threshold = None
    if outcomes["selector"].kept:
        threshold = choose_threshold_of(context, arm_context.prepared, models.selector, "validation")
        log.info("refresh in round %d: the selector's threshold is now %.3f", round_number, threshold.value)
    return Refreshed(tuple(outcomes.values()), threshold)


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
    images = arm_context.prepared.ratings.images
    pool = MismatchPool([image.prompt for image in images], [image.modality for image in images])
    return {
        "selector": evaluate_selector(models.selector, validation, bootstrap).overall.spearman,
        "policy": evaluate_policy(models.policy, validation, pool, bootstrap).overall.auroc,
    }
