"""How well a policy distinguishes an image's own prompt from others: AUROC and recall@k, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.imagegen.figure import Bootstrap, Figure, from_samples, sample_weights, split_by_modality, undefined
from toolkit.imagegen.weighted import auroc
from toolkit.scoring.statistics import proportion
from toolkit.scoring.statistics.bootstrap import count_groups

RECALL_AT = (1, 5, 10)


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
    parts = split_by_modality(scores)
    by_modality = {modality: agreement_figures(part, bootstrap) for modality, part in parts.items()}
    return AgreementMetrics(agreement_figures(scores, bootstrap), by_modality)


def agreement_figures(scores: AgreementScores, bootstrap: Bootstrap) -> AgreementFigures:
    """Return the figures of all the given images."""
    same = [row for row in range(len(scores.groups)) if scores.same_modality_N[row]]
    return AgreementFigures(
        n=len(scores.groups),
        auroc=_auroc(scores, "no image", bootstrap),
        auroc_same_modality=_auroc(scores.take(same), "no mismatch of the same modality", bootstrap),
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


def _auroc(scores: AgreementScores, reason: str, bootstrap: Bootstrap) -> Figure:
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
