"""How well scores agree with held-out ratings, overall and per modality, with bootstrap intervals by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.imagegen.figure import Bootstrap, Figure, from_samples, sample_weights, split_by_modality, undefined
from toolkit.imagegen.weighted import auroc, calibration_error, quadratic_kappa, spearman, weighted_mean
from toolkit.scoring.statistics.bootstrap import count_groups

N_BINS = 10
"""Bins of the calibration error."""

_NO_RATING = "no rating"


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
    parts = split_by_modality(scored)
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


def _constant(scores_N: np.ndarray, levels_N: np.ndarray) -> str:
    if len(scores_N) < 2:
        return "fewer than 2 ratings"
    return "all ratings are equal" if len(np.unique(levels_N)) < 2 else "all scores are equal"


def _one_class(highest_N: np.ndarray) -> str:
    return "only ratings of the highest level" if highest_N.all() else "no rating of the highest level"
