"""Evaluation of a selector, a judge or a policy on held-out ratings."""

import numpy as np
import torch

from toolkit.imagegen.agreement_metrics import AgreementMetrics, AgreementScores, agreement_metrics, retrieval_ranks
from toolkit.imagegen.figure import Bootstrap
from toolkit.imagegen.mismatches import MismatchPool, plain_text
from toolkit.imagegen.policy import Policy
from toolkit.imagegen.rated import RatedImages
from toolkit.imagegen.rating_metrics import RatingMetrics, ScoredRatings, rating_metrics
from toolkit.imagegen.selector import Selector
from toolkit.imagegen.threshold import Threshold, ThresholdSettings, choose_threshold


def evaluate_selector(selector: Selector, held_out: RatedImages, bootstrap: Bootstrap) -> RatingMetrics:
    """Return the agreement of a selector or judge with held-out ratings."""
    scored = selector.score(held_out.images_NCHW)
    levels_N = torch.zeros(0, dtype=torch.long) if scored.levels_N is None else scored.levels_N
    ratings = ScoredRatings(
        scored.scores_N.double().numpy(),
        levels_N.numpy(),
        held_out.levels_N.cpu().numpy(),
        selector.n_levels,
        held_out.modalities,
        held_out.groups,
    )
    return rating_metrics(ratings, bootstrap)


def selector_threshold(
    selector: Selector, validation: RatedImages, passing_level: int, settings: ThresholdSettings
) -> Threshold:
    """Return the threshold at which images with a rating of at least ``passing_level`` are passed precisely enough."""
    scores_N = selector.score(validation.images_NCHW).scores_N
    return choose_threshold(scores_N.double().numpy(), (validation.levels_N >= passing_level).numpy(), settings)


def evaluate_policy(
    policy: Policy, held_out: RatedImages, pool: MismatchPool, bootstrap: Bootstrap
) -> AgreementMetrics:
    """Return how well a policy distinguishes each held-out image's prompt from others.

    Args:
        policy: The policy.
        held_out: Held-out ratings. Only their images and prompts are used.
        pool: The prompts of all ratings. Mismatches are drawn from them, and the distinct ones are ranked.
        bootstrap: Settings of the intervals. Its seed also draws the mismatches.
    """
    generator = torch.Generator().manual_seed(bootstrap.seed)
    wrong = pool.draw(held_out.prompts, held_out.modalities, generator)
    distinct = list(pool.distinct)
    index = {plain_text(prompt): position for position, prompt in enumerate(distinct)}
    for prompt in held_out.prompts:
        if plain_text(prompt) not in index:
            index[plain_text(prompt)] = len(distinct)
            distinct.append(prompt)
    own_N = np.array([index[plain_text(prompt)] for prompt in held_out.prompts], dtype=int)
    wrong_N = np.array([index[plain_text(prompt)] for prompt in wrong.prompts], dtype=int)
    grid_NP = policy.score_grid(held_out.images_NCHW, distinct).double().numpy()
    rows = np.arange(len(own_N))
    scores = AgreementScores(
        grid_NP[rows, own_N],
        grid_NP[rows, wrong_N],
        np.array(wrong.same_modality, dtype=bool),
        retrieval_ranks(grid_NP, own_N.tolist()),
        len(distinct),
        held_out.modalities,
        held_out.groups,
    )
    return agreement_metrics(scores, bootstrap)
