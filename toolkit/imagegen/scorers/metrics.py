"""Agreement of selector and judge with held-out ratings, and of the policy with prompts, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import torch

from toolkit.imagegen.evaluation.statistics import (
    Bootstrap,
    Figure,
    auroc,
    calibration_error,
    from_samples,
    quadratic_kappa,
    sample_weights,
    spearman,
    undefined,
    weighted_mean,
)
from toolkit.imagegen.scorers.fitting import RatedImages
from toolkit.imagegen.scorers.policy import MismatchPool, Policy, plain_text
from toolkit.imagegen.scorers.reward import Threshold, ThresholdSettings, choose_threshold
from toolkit.imagegen.scorers.selector import Selector
from toolkit.scoring.statistics import proportion
from toolkit.scoring.statistics.bootstrap import count_groups

N_BINS = 10
"""Bins of the calibration error."""

_NO_RATING = "no rating"

RECALL_AT = (1, 5, 10)


class _Rows(Protocol):
    """Scores of images, one row per image or rating."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modality of each row."""

    def take(self, rows: Sequence[int]) -> Self:
        """Return some of the rows."""


_R = TypeVar("_R", bound=_Rows)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRatings:
    """Held-out ratings with the scores of their images, one row per rating.

    Attributes:
        scores_N: Scores in [0, 1].
        predicted_N: Predicted ranks.
        levels_N: Ranks of the ratings.
        n_levels: Number of levels of the range of ratings.
        modalities: Modality of each row.
        groups: Patient or image of each row.
    """

    scores_N: np.ndarray
    predicted_N: np.ndarray
    levels_N: np.ndarray
    n_levels: int
    modalities: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check lengths and ranges."""
        n = len(self.scores_N)
        sizes = [len(each) for each in (self.predicted_N, self.levels_N, self.modalities, self.groups)]
        if any(size != n for size in sizes):
            raise ValueError(f"{n} scores, but predictions, levels, modalities and groups number {sizes}")
        if n and not (self.scores_N.min() >= 0 and self.scores_N.max() <= 1):
            raise ValueError("scores must be in [0, 1]")
        for name, ranks in (("levels", self.levels_N), ("predictions", self.predicted_N)):
            if n and not (ranks.dtype.kind in "iu" and ranks.min() >= 0 and ranks.max() < self.n_levels):
                raise ValueError(f"{name} must be integers from 0 to {self.n_levels - 1}")

    def take(self, rows: Sequence[int]) -> "ScoredRatings":
        """Return some of the rows."""
        return ScoredRatings(
            self.scores_N[rows],
            self.predicted_N[rows],
            self.levels_N[rows],
            self.n_levels,
            tuple(self.modalities[row] for row in rows),
            tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True, slots=True)
class RatingFigures:
    """Agreement with ``n`` ratings.

    Attributes:
        n: Number of ratings.
        groups: Number of patients or images.
        spearman: Rank correlation of score and rating.
        kappa: Cohen's kappa of predicted and true rank with quadratic weights.
        auroc: Area under the ROC curve of the score for "the rating is the highest".
        mae: Mean absolute difference of score and rank divided by the highest rank.
        baseline_mae: The same if every score were the median rating.
        ece: Calibration error of the score as an expected rank divided by the highest rank, over 10 bins.
    """

    n: int
    groups: int
    spearman: Figure
    kappa: Figure
    auroc: Figure
    mae: Figure
    baseline_mae: Figure
    ece: Figure


@dataclass(frozen=True, slots=True)
class RatingMetrics:
    """Figures of all held-out ratings, and of those of each modality."""

    overall: RatingFigures
    by_modality: Mapping[str, RatingFigures]


def rating_metrics(scored: ScoredRatings, bootstrap: Bootstrap) -> RatingMetrics:
    """Return the agreement of scores with ratings."""
    parts = _split_by_modality(scored)
    by_modality = {modality: rating_figures(part, bootstrap) for modality, part in parts.items()}
    return RatingMetrics(rating_figures(scored, bootstrap), by_modality)


def rating_figures(scored: ScoredRatings, bootstrap: Bootstrap) -> RatingFigures:
    """Return the figures of all the given ratings."""
    n, n_groups = len(scored.scores_N), count_groups(scored.groups)
    if not n:
        none = undefined(_NO_RATING, 0, 0, bootstrap.confidence)
        return RatingFigures(0, 0, none, none, none, none, none, none)
    weights_RN = sample_weights(scored.groups, bootstrap)
    scores_N, levels_N, top = scored.scores_N.astype(float), scored.levels_N, scored.n_levels - 1
    targets_N, highest_N = levels_N / top, levels_N == top

    def figure(values_R: np.ndarray, reason: str = "") -> Figure:
        return from_samples(values_R, scored.groups, reason, bootstrap)

    kappa_R = quadratic_kappa(levels_N, scored.predicted_N, scored.n_levels, weights_RN)
    return RatingFigures(
        n=n,
        groups=n_groups,
        spearman=figure(spearman(scores_N, levels_N, weights_RN), _constant(scores_N, levels_N)),
        kappa=figure(kappa_R, "all ratings and predictions are of one level"),
        auroc=figure(auroc(scores_N, highest_N, weights_RN), _one_class(highest_N)),
        mae=figure(weighted_mean(np.abs(scores_N - targets_N), weights_RN)),
        baseline_mae=figure(weighted_mean(np.abs(np.median(targets_N) - targets_N), weights_RN)),
        ece=figure(calibration_error(scores_N, targets_N, N_BINS, weights_RN)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class AgreementScores:
    """Scores of held-out images.

    Attributes:
        matched_N: Score of each image with its own prompt, in [0, 1].
        mismatched_N: Score with a mismatched prompt.
        same_modality_N: Whether the mismatched prompt is of the image's modality.
        ranks_N: Rank of the image's own prompt among the distinct ones, 1 for the best (``retrieval_ranks``).
        n_prompts: Number of distinct prompts that were ranked.
        modalities: Modality of each image.
        groups: Patient or image of each row.
    """

    matched_N: np.ndarray
    mismatched_N: np.ndarray
    same_modality_N: np.ndarray
    ranks_N: np.ndarray
    n_prompts: int
    modalities: tuple[str, ...]
    groups: tuple[str, ...]

    def take(self, rows: Sequence[int]) -> "AgreementScores":
        """Return some of the rows."""
        return AgreementScores(
            self.matched_N[rows],
            self.mismatched_N[rows],
            self.same_modality_N[rows],
            self.ranks_N[rows],
            self.n_prompts,
            tuple(self.modalities[row] for row in rows),
            tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True, slots=True)
class Recall:
    """Fraction of images whose own prompt is among the best ``k``, and that of a random order."""

    k: int
    figure: Figure
    chance: float | None


@dataclass(frozen=True, slots=True)
class AgreementFigures:
    """Agreement on ``n`` images.

    Attributes:
        n: Number of images.
        auroc: Area under the ROC curve of matched against mismatched prompts.
        auroc_same_modality: The same with mismatches of the image's modality only.
        recall: Recall@k over the distinct prompts.
    """

    n: int
    auroc: Figure
    auroc_same_modality: Figure
    recall: tuple[Recall, ...]


@dataclass(frozen=True, slots=True)
class AgreementMetrics:
    """Figures of all held-out images, and of those of each modality."""

    overall: AgreementFigures
    by_modality: Mapping[str, AgreementFigures]


def agreement_metrics(scores: AgreementScores, bootstrap: Bootstrap) -> AgreementMetrics:
    """Return how well the policy distinguishes matched from mismatched prompts."""
    parts = _split_by_modality(scores)
    by_modality = {modality: agreement_figures(part, bootstrap) for modality, part in parts.items()}
    return AgreementMetrics(agreement_figures(scores, bootstrap), by_modality)


def agreement_figures(scores: AgreementScores, bootstrap: Bootstrap) -> AgreementFigures:
    """Return the figures of all the given images."""
    same = [row for row in range(len(scores.groups)) if scores.same_modality_N[row]]
    return AgreementFigures(
        n=len(scores.groups),
        auroc=_prompt_auroc(scores, "no image", bootstrap),
        auroc_same_modality=_prompt_auroc(scores.take(same), "no mismatch of the same modality", bootstrap),
        recall=tuple(_recall(scores, k, bootstrap) for k in RECALL_AT),
    )


def retrieval_ranks(grid_NP: np.ndarray, own_N: Sequence[int]) -> np.ndarray:
    """Return the rank of each image's own prompt, 1 for the best. Prompts with the same score count as better.

    >>> retrieval_ranks(np.array([[0.9, 0.1, 0.3], [0.5, 0.5, 0.2]]), [0, 1]).tolist()
    [1, 2]
    """
    own_N1 = grid_NP[np.arange(len(grid_NP)), own_N][:, None]
    ranks_N: np.ndarray = (grid_NP >= own_N1).sum(axis=1)
    return ranks_N


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


def _split_by_modality(scores: _R) -> dict[str, _R]:
    """Return the rows of each modality, sorted by its name."""
    found: dict[str, list[int]] = {modality: [] for modality in sorted(set(scores.modalities))}
    for row, modality in enumerate(scores.modalities):
        found[modality].append(row)
    return {modality: scores.take(rows) for modality, rows in found.items()}


def _constant(scores_N: np.ndarray, levels_N: np.ndarray) -> str:
    if len(scores_N) < 2:
        return "fewer than 2 ratings"
    return "all ratings are equal" if len(np.unique(levels_N)) < 2 else "all scores are equal"


def _one_class(highest_N: np.ndarray) -> str:
    return "only ratings of the highest level" if highest_N.all() else "no rating of the highest level"


def _prompt_auroc(scores: AgreementScores, reason: str, bootstrap: Bootstrap) -> Figure:
    n = len(scores.groups)
    if not n:
        return undefined(reason, 0, 0, bootstrap.confidence)
    weights_RN = sample_weights(scores.groups, bootstrap)
    both = np.concatenate([scores.matched_N, scores.mismatched_N])
    values_R = auroc(both, np.arange(2 * n) < n, np.tile(weights_RN, 2))
    return from_samples(values_R, scores.groups, reason, bootstrap)


def _recall(scores: AgreementScores, k: int, bootstrap: Bootstrap) -> Recall:
    n, n_groups = len(scores.groups), count_groups(scores.groups)
    if not n:
        return Recall(k, undefined("no image", 0, 0, bootstrap.confidence), None)
    if scores.n_prompts <= k:
        reason = f"there are only {scores.n_prompts} distinct prompts"
        return Recall(k, undefined(reason, n, n_groups, bootstrap.confidence), None)
    hits = (scores.ranks_N <= k).astype(float).tolist()
    found = proportion(hits, scores.groups, bootstrap.resamples, bootstrap.seed, bootstrap.confidence)
    return Recall(k, Figure(found), k / scores.n_prompts)
