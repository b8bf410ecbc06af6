"""Metrics of class probabilities against scikit-learn and torchmetrics, with their intervals and thresholds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score, roc_curve
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from toolkit.scoring.statistics import (
    Draws,
    ProbabilityMetrics,
    ScoredAnswer,
    compare_probabilities,
    disagreement,
    probability_metrics,
    wilson,
)
from toolkit.scoring.statistics.probabilities import threshold_at

NAMES = ("adipose", "mucus", "stroma")
FEW = Draws(200, 1)


def scored(
    probabilities: NDArray[Any], truth: NDArray[Any], groups: Sequence[str] | None = None, names: Sequence[str] = NAMES
) -> list[ScoredAnswer]:
    """Return rows with these probabilities and 0, 1 or NaN, both of shape (answers, classes)."""
    return [
        ScoredAnswer(
            id=f"q{number}",
            group=groups[number] if groups else f"g{number}",
            scores={},
            probabilities=dict(zip(names, map(float, row), strict=True)),
            truth={name: bool(one) for name, one in zip(names, known, strict=True) if not np.isnan(one)},
        )
        for number, (row, known) in enumerate(zip(probabilities, truth, strict=True))
    ]


def example(n: int = 120, seed: int = 0, digits: int = 2) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return informative probabilities, rounded so that many are equal, and the truth of one label per answer."""
    rng = np.random.default_rng(seed)
    truth = np.eye(3)[rng.integers(0, 3, n)]
    logits = 1.2 * truth + rng.normal(0, 1, (n, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.round(digits), truth


def metrics_of(rows: list[ScoredAnswer], one_label: bool = True, draws: Draws = FEW) -> ProbabilityMetrics:
    found = probability_metrics(rows, one_label, draws, "test")
    assert found is not None
    return found


def test_values_are_those_of_scikit_learn() -> None:
    probabilities, truth = example()
    found = metrics_of(scored(probabilities, truth))
    for column, name in enumerate(NAMES):
        one, scores, true = found.classes[name], probabilities[:, column], truth[:, column]
        assert one.auroc.value == pytest.approx(roc_auc_score(true, scores))
        assert one.average_precision.value == pytest.approx(average_precision_score(true, scores))
        assert one.brier.value == pytest.approx(brier_score_loss(true, scores))
        assert (one.positives, one.negatives) == (true.sum(), (1 - true).sum())
        assert one.prevalence == pytest.approx(true.mean())
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, probabilities, average="macro"))
    assert found.average_precision.value == pytest.approx(
        average_precision_score(truth, probabilities, average="macro")
    )
    assert (found.n, found.groups, found.auroc.n) == (120, 120, 120)


def test_calibration_errors_are_those_of_torchmetrics() -> None:
    probabilities, truth = example(digits=6)
    probabilities /= probabilities.sum(1, keepdims=True)
    scores, labels = torch.tensor(probabilities), torch.tensor(truth.argmax(1))
    top = MulticlassCalibrationError(3, n_bins=15, norm="l1")(scores, labels)
    found = metrics_of(scored(probabilities, truth))
    assert found.bins == 15
    assert found.calibration_error.value == pytest.approx(float(top), abs=1e-6)
    each = [BinaryCalibrationError(n_bins=15)(scores[:, k], torch.tensor(truth[:, k]).int()) for k in range(3)]
    several = metrics_of(scored(probabilities, truth), one_label=False)
    assert several.calibration_error.value == pytest.approx(float(sum(each)) / 3, abs=1e-6)


def test_intervals_are_those_of_a_bootstrap_over_groups() -> None:
    """The oracle draws groups with another generator and computes AUROC with scikit-learn."""
    probabilities, truth = example(90)
    groups = [f"patient {i // 3}" for i in range(90)]
    found = metrics_of(scored(probabilities, truth, groups), draws=Draws(2000, 1)).classes["mucus"]
    rng, drawn, precisions = np.random.default_rng(5), [], []
    for _ in range(500):
        rows = np.concatenate([np.arange(3 * g, 3 * g + 3) for g in rng.integers(0, 30, 30)])
        if 0 < truth[rows, 1].sum() < len(rows):
            drawn.append(roc_auc_score(truth[rows, 1], probabilities[rows, 1]))
            precisions.append(average_precision_score(truth[rows, 1], probabilities[rows, 1]))
    for estimate, values in ((found.auroc, drawn), (found.average_precision, precisions)):
        assert (estimate.low, estimate.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.02)
        assert (estimate.method, estimate.groups, estimate.n) == ("bootstrap by group", 30, 90)


def test_a_class_without_a_positive_or_without_a_negative_has_no_value() -> None:
    probabilities, truth = example(30)
    truth[:, 2] = 0  # no stroma
    truth[:, 0] = 1  # everything has adipose
    found = metrics_of(scored(probabilities, truth), one_label=False)
    for name, counts in (("stroma", (0, 30)), ("adipose", (30, 0))):
        one = found.classes[name]
        assert (one.positives, one.negatives) == counts
        assert one.auroc.value is one.average_precision.value is one.auroc.low is None
        assert all(point.threshold is None for point in one.operating_points)
        assert all(None in (point.sensitivity.value, point.specificity.value) for point in one.operating_points)
    assert found.auroc.value == found.classes["mucus"].auroc.value  # the mean is over the classes that have one
    assert found.prevalence == found.classes["mucus"].prevalence


def test_open_labels_are_in_no_count() -> None:
    probabilities, truth = example(60)
    truth[:20, 1] = np.nan
    one = metrics_of(scored(probabilities, truth), one_label=False).classes["mucus"]
    assert one.positives + one.negatives == one.auroc.n == 40
    assert one.auroc.value == pytest.approx(roc_auc_score(truth[20:, 1], probabilities[20:, 1]))


def test_a_perfect_ranking_still_has_a_width() -> None:
    truth = np.repeat(np.eye(3), 8, axis=0)
    found = metrics_of(scored(0.8 * truth + 0.05, truth))
    one = found.classes["mucus"].auroc
    assert (one.value, one.method) == (1, "wilson by group")
    assert one.high == pytest.approx(1)
    assert one.low == pytest.approx(wilson(8, 8).low)
    assert found.auroc.value == 1
    assert found.auroc.low == pytest.approx(wilson(8, 8).low)


def test_probabilities_that_say_nothing_have_the_values_of_chance() -> None:
    _, truth = example(60)
    found = metrics_of(scored(np.full((60, 3), 1 / 3), truth))
    assert found.auroc.value == pytest.approx(0.5)
    assert found.average_precision.value == pytest.approx(found.prevalence)


def test_answers_without_probabilities_are_left_out_and_counted() -> None:
    probabilities, truth = example(20)
    rows = [*scored(probabilities, truth), ScoredAnswer("x", "x", {})]
    assert metrics_of(rows).n == 20
    assert probability_metrics(rows[-1:], True, FEW, "test") is None


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_thresholds_are_the_best_points_of_the_roc_curve(level: float) -> None:
    probabilities, truth = example(200)
    scores, positive = probabilities[:, 0], truth[:, 0] == 1
    false, true, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    high = threshold_at(scores, positive, "specificity", level)
    assert high == pytest.approx(thresholds[1 - false >= level].min())
    low = threshold_at(scores, positive, "sensitivity", level)
    assert low == pytest.approx(thresholds[true >= level].max())
    points = {
        (one.fixed, one.level): one
        for one in metrics_of(scored(probabilities, truth)).classes["adipose"].operating_points
    }
    at = points["specificity", level]
    assert at.threshold == high
    assert at.sensitivity.value == pytest.approx(true[1 - false >= level].max())
    assert (at.sensitivity.n, at.specificity.n) == (positive.sum(), (~positive).sum())
    assert (at.specificity.value or 0) >= level
    assert (points["sensitivity", level].sensitivity.value or 0) >= level


def test_thresholds_of_another_split_are_applied_unchanged() -> None:
    test, validation = scored(*example(100, 1)), scored(*example(100, 2))
    found = probability_metrics(test, True, FEW, "test", ("validation", validation))
    own = metrics_of(test)
    assert found is not None
    assert (found.thresholds_from, own.thresholds_from) == ("validation", "test")
    chosen = metrics_of(validation).classes["mucus"].operating_points[0]
    applied = found.classes["mucus"].operating_points[0]
    assert applied.threshold == chosen.threshold
    scores, positive = example(100, 1)
    reached = scores[:, 1] >= (applied.threshold or 0)
    assert applied.sensitivity.value == pytest.approx(reached[positive[:, 1] == 1].mean())
    assert applied.specificity.value == pytest.approx(1 - reached[positive[:, 1] == 0].mean())


def test_a_threshold_that_no_score_reaches_has_no_value() -> None:
    scores, positive = np.array([0.9, 0.9, 0.1]), np.array([True, False, True])
    assert threshold_at(scores, positive, "specificity", 0.9) is None  # the highest score is a negative's too
    assert threshold_at(scores, positive, "sensitivity", 0.9) == 0.1


def test_two_evaluations_are_compared_on_their_common_answers() -> None:
    good, truth = example(80)
    poor = np.random.default_rng(3).dirichlet(np.ones(3), 80)
    before, after = scored(poor, truth)[:60], scored(good, truth)[20:]
    found = compare_probabilities(before, after, FEW)["macro AUROC"]
    expected = [roc_auc_score(truth[20:60], part[20:60], average="macro") for part in (poor, good)]
    assert found.n == 40
    assert found.value == pytest.approx(expected[1] - expected[0])
    assert (found.low or 0) > 0
    assert compare_probabilities(after, after, FEW)["macro AUROC"].high == 0
    assert compare_probabilities([], after, FEW) == {}


def test_the_accuracy_of_the_most_probable_class_is_that_of_scikit_learn() -> None:
    probabilities, truth = example(digits=6)
    found = metrics_of(scored(probabilities, truth))
    assert found.top_accuracy is not None
    assert found.top_accuracy.value == pytest.approx(accuracy_score(truth.argmax(1), probabilities.argmax(1)))
    assert metrics_of(scored(probabilities, truth), one_label=False).top_accuracy is None


def test_answers_that_differ_from_the_most_probable_class_are_counted_among_the_parsed_ones() -> None:
    probabilities, truth = example(n=3, digits=6)
    top, lowest = NAMES[probabilities[0].argmax()], NAMES[probabilities[0].argmin()]
    row = scored(probabilities, truth)[0]
    rows = [replace(row, label=("mucus", named)) for named in (top, lowest, None)]
    assert disagreement(rows) == (1, 2)
