"""Metrics of ratings and agreement against scikit-learn, SciPy and torchmetrics, and the choice of a threshold."""

import doctest
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, precision_score, recall_score, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from tests.helpers.optional import defined
from tests.helpers.problems import raises
from toolkit.errors import DataError, ModelError, TrainingError
from toolkit.imagegen.evaluation.statistics import (
    Bootstrap,
    Figure,
    auroc,
    calibration_error,
    quadratic_kappa,
    sample_weights,
    spearman,
)
from toolkit.imagegen.scorers import metrics as metrics_module
from toolkit.imagegen.scorers.metrics import (
    AgreementScores,
    RatingFigures,
    ScoredRatings,
    agreement_metrics,
    rating_figures,
    rating_metrics,
    retrieval_ranks,
)
from toolkit.imagegen.scorers.reward import ThresholdSettings, choose_threshold
from toolkit.imagegen.scorers.selector import SelectorSettings, check_independent
from toolkit.imagegen.scorers.vision_tower import TowerSettings
from toolkit.scoring.statistics import Estimate

BOOTSTRAP = Bootstrap(resamples=200)


def ratings(n: int, seed: int, n_levels: int = 3, noise: float = 0.3) -> ScoredRatings:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, n_levels, n)
    scores = np.clip(levels / (n_levels - 1) + rng.normal(0, noise, n), 0, 1).round(2)
    predicted = np.rint(scores * (n_levels - 1)).astype(int)
    modalities = tuple(rng.choice(["CT", "OCT"], n).tolist())
    return ScoredRatings(scores, predicted, levels, n_levels, modalities, tuple(f"p{index // 2}" for index in range(n)))


# The figures


@pytest.mark.parametrize("n_levels", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_figures_equal_those_of_scikit_learn_and_scipy(n_levels: int, seed: int) -> None:
    scored = ratings(150, seed, n_levels)
    found = rating_figures(scored, BOOTSTRAP)
    targets = scored.levels_N / (n_levels - 1)
    expected = {
        "spearman": spearmanr(scored.scores_N, scored.levels_N).statistic,
        "kappa": cohen_kappa_score(scored.levels_N, scored.predicted_N, weights="quadratic"),
        "auroc": roc_auc_score(scored.levels_N == n_levels - 1, scored.scores_N),
        "mae": mean_absolute_error(targets, scored.scores_N),
        "baseline_mae": mean_absolute_error(targets, np.full(150, np.median(targets))),
    }
    for name, value in expected.items():
        figure = getattr(found, name)
        assert figure.value == pytest.approx(value, abs=1e-12), name
        assert figure.estimate.low <= figure.value <= figure.estimate.high
        assert (figure.estimate.n, figure.estimate.groups, figure.estimate.method) == (150, 75, "bootstrap by group")
    assert (found.n, found.groups) == (150, 75)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_of_two_levels_is_that_of_torchmetrics(seed: int) -> None:
    scored = ratings(300, seed, n_levels=2)
    # torchmetrics rounds borders of bins to single precision.
    scores = scored.scores_N + 0.003 * (scored.scores_N < 1)
    theirs = binary_calibration_error(torch.tensor(scores), torch.tensor(scored.levels_N), n_bins=10, norm="l1")
    found = rating_figures(replace(scored, scores_N=scores), BOOTSTRAP)
    assert found.ece.value == pytest.approx(theirs.item(), abs=1e-6)


def test_the_calibration_error_of_more_levels_is_that_of_a_loop() -> None:
    scored = ratings(200, 0, n_levels=4)
    total = 0.0
    for index in range(10):
        inside = np.minimum((scored.scores_N * 10).astype(int), 9) == index
        if inside.any():
            total += inside.sum() * abs(scored.scores_N[inside].mean() - scored.levels_N[inside].mean() / 3)
    assert rating_figures(scored, BOOTSTRAP).ece.value == pytest.approx(total / 200, abs=1e-12)


@examples(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 30))
def test_integer_weights_equal_repeated_rows(seed: int, n_levels: int, n: int) -> None:
    scored, rng = ratings(n, seed, n_levels), np.random.default_rng(seed)
    weights = rng.integers(0, 4, n)
    rows = np.repeat(np.arange(n), weights)
    ones, row = np.ones((1, len(rows))), weights[None].astype(float)
    values, levels, predicted = scored.scores_N, scored.levels_N, scored.predicted_N
    pairs = [
        (spearman(values, levels, row), spearman(values[rows], levels[rows], ones) if len(rows) else [np.nan]),
        (
            auroc(values, levels > 0, row),
            auroc(values[rows], levels[rows] > 0, ones) if len(rows) else [np.nan],
        ),
        (
            quadratic_kappa(levels, predicted, n_levels, row),
            quadratic_kappa(levels[rows], predicted[rows], n_levels, ones),
        ),
        (calibration_error(values, levels, 10, row), calibration_error(values[rows], levels[rows], 10, ones)),
    ]
    for weighted, repeated in pairs:
        np.testing.assert_allclose(weighted, repeated, atol=1e-9)


def test_samples_draw_whole_groups() -> None:
    groups = ["a", "b", "a", "c", "c", "c"]
    weights = sample_weights(groups, Bootstrap(resamples=50))
    assert weights.shape == (51, 6)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_intervals_have_their_coverage() -> None:
    # The population value of Spearman's correlation for the simulation, by a large sample.
    truth = rating_figures(ratings(40_000, 9), Bootstrap(resamples=0)).spearman.value
    assert truth is not None
    inside = 0
    for seed in range(100):
        estimate = rating_figures(ratings(100, 100 + seed), BOOTSTRAP).spearman.estimate
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= truth <= estimate.high
    assert inside >= 86


def test_each_modality_has_its_figures() -> None:
    scored = ratings(120, 3)
    found = rating_metrics(scored, BOOTSTRAP)
    assert sorted(found.by_modality) == ["CT", "OCT"]
    assert sum(figures.n for figures in found.by_modality.values()) == found.overall.n == 120
    rows = [row for row, name in enumerate(scored.modalities) if name == "CT"]
    expected = spearmanr(scored.scores_N[rows], scored.levels_N[rows]).statistic
    assert found.by_modality["CT"].spearman.value == pytest.approx(expected)


def reasons(found: RatingFigures) -> dict[str, str]:
    figures = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: each.reason for name, each in figures.items() if isinstance(each, Figure) and each.reason}


@pytest.mark.parametrize(
    ("scores", "levels", "undefined"),
    [
        ([0.5, 0.5, 0.5], [0, 1, 2], {"spearman"}),
        ([0.1, 0.2, 0.3], [1, 1, 1], {"spearman", "auroc"}),
        ([0.1, 0.2, 0.9], [2, 2, 2], {"spearman", "auroc"}),
        ([0.5, 0.5, 0.5], [1, 1, 1], {"spearman", "auroc", "kappa"}),
        ([0.5], [1], {"spearman", "auroc", "kappa"}),
        ([0.1, 0.9], [0, 2], set()),
    ],
)
def test_undefined_figures_have_a_reason(scores: list[float], levels: list[int], undefined: set[str]) -> None:
    values = np.array(scores)
    predicted = np.rint(values * 2).astype(int)
    n = len(scores)
    scored = ScoredRatings(values, predicted, np.array(levels), 3, ("CT",) * n, tuple(str(index) for index in range(n)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rating_figures(scored, BOOTSTRAP)
    assert set(reasons(found)) == undefined
    assert found.mae.value is not None


def test_a_constant_prediction_of_varied_ratings_has_a_kappa_of_0() -> None:
    scored = replace(ratings(30, 0), predicted_N=np.ones(30, dtype=int))
    assert rating_figures(scored, BOOTSTRAP).kappa.value == 0


def test_without_ratings_every_figure_has_a_reason() -> None:
    found = rating_metrics(ratings(10, 0).take([]), BOOTSTRAP)
    assert len(reasons(found.overall)) == 6
    assert found.by_modality == {}


def test_a_figure_has_a_value_or_a_reason() -> None:
    with pytest.raises(ValueError):
        Figure(Estimate(None, 0, None, None, "none", 0))


@pytest.mark.parametrize(("name", "value"), [("scores_N", 1.5), ("levels_N", 3), ("predicted_N", -1)])
def test_values_outside_their_range_are_rejected(name: str, value: float) -> None:
    scored = ratings(4, 0)
    column = getattr(scored, name).copy()
    column[1] = value
    with pytest.raises(ValueError):
        replace(scored, **{name: column})


# Agreement


def agreement(n: int, seed: int, n_prompts: int = 8) -> tuple[AgreementScores, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    own = rng.integers(0, n_prompts, n)
    grid = rng.random((n, n_prompts)).round(2)
    grid[np.arange(n), own] = np.clip(grid[np.arange(n), own] + 0.3, 0, 1)
    matched = grid[np.arange(n), own]
    mismatched = grid[np.arange(n), (own + 1) % n_prompts]
    scores = AgreementScores(
        matched,
        mismatched,
        rng.random(n) < 0.5,
        retrieval_ranks(grid, own.tolist()),
        n_prompts,
        tuple(rng.choice(["CT", "OCT"], n).tolist()),
        tuple(f"p{index // 2}" for index in range(n)),
    )
    return scores, grid, own


def test_auroc_and_recall_equal_those_of_scikit_learn_and_a_loop() -> None:
    scores, grid, own = agreement(100, 0)
    found = agreement_metrics(scores, BOOTSTRAP)
    labels = [1] * 100 + [0] * 100
    expected = roc_auc_score(labels, np.concatenate([scores.matched_N, scores.mismatched_N]))
    assert found.overall.auroc.value == pytest.approx(expected, abs=1e-12)
    same = scores.same_modality_N
    expected = roc_auc_score(
        [1] * same.sum() + [0] * same.sum(), np.concatenate([scores.matched_N[same], scores.mismatched_N[same]])
    )
    assert found.overall.auroc_same_modality.value == pytest.approx(expected, abs=1e-12)
    for recall in found.overall.recall[:2]:
        hits = [
            sum(other >= row[index] for position, other in enumerate(row) if position != index) < recall.k
            for row, index in zip(grid, own, strict=True)
        ]
        assert recall.figure.value == pytest.approx(np.mean(hits))
        assert recall.chance == recall.k / 8
    assert sum(each.n for each in found.by_modality.values()) == 100


def test_recall_of_as_many_prompts_as_there_are_is_undefined() -> None:
    found = agreement_metrics(agreement(20, 0, n_prompts=5)[0], BOOTSTRAP)
    assert [recall.figure.value is None for recall in found.overall.recall] == [False, True, True]
    assert found.overall.recall[2].figure.reason


def test_without_mismatches_of_the_same_modality_their_auroc_is_undefined() -> None:
    scores = replace(agreement(20, 0)[0], same_modality_N=np.zeros(20, dtype=bool))
    found = agreement_metrics(scores, BOOTSTRAP).overall
    assert found.auroc.value is not None
    assert found.auroc_same_modality.value is None


def test_worked_examples_hold() -> None:
    result = doctest.testmod(metrics_module)
    assert (result.attempted > 0, result.failed) == (True, 0)


# The threshold


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
def test_the_threshold_is_the_lowest_with_the_target_precision(target: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(200).round(3)
    good = rng.random(200) < scores
    found = choose_threshold(scores, good, ThresholdSettings(target, min_passed=5))
    assert found.reached
    passed = scores >= found.value
    assert found.precision.value == pytest.approx(precision_score(good, passed))
    assert found.recall.value == pytest.approx(recall_score(good, passed))
    assert found.pass_rate.value == pytest.approx(passed.mean())
    assert found.base_rate.value == pytest.approx(good.mean())
    assert defined(found.precision.value) >= target
    for lower in scores[scores < found.value]:
        assert precision_score(good, scores >= lower) < target


def test_a_target_that_no_threshold_reaches_is_reported() -> None:
    rng = np.random.default_rng(0)
    scores, good = rng.random(100), rng.random(100) < 0.4
    found = choose_threshold(scores, good, ThresholdSettings(0.99, min_passed=10))
    assert not found.reached
    best = max(good[scores >= value].mean() for value in scores if (scores >= value).sum() >= 10)
    assert found.precision.value == pytest.approx(best)
    assert choose_threshold(scores, good, ThresholdSettings(0.3)).reached


def test_a_few_lucky_images_do_not_make_a_threshold() -> None:
    scores = np.concatenate([[0.99, 0.98], np.full(50, 0.5)])
    good = np.array([True, True] + [False] * 50)
    assert not choose_threshold(scores, good, ThresholdSettings(0.9, min_passed=10)).reached
    assert choose_threshold(scores, good, ThresholdSettings(0.9, min_passed=2)).reached


def test_too_few_validation_ratings_are_an_error() -> None:
    with raises(TrainingError, "imagegen.threshold_ratings_too_few"):
        choose_threshold([0.5] * 9, [True] * 9, ThresholdSettings(min_passed=10))
    with raises(TrainingError, "imagegen.threshold_ratings_too_few"):
        choose_threshold([], [], ThresholdSettings(min_passed=0))


# The judge


def test_a_judge_has_its_own_seed_encoder_and_ratings() -> None:
    selector = SelectorSettings(seed=0)
    judge = SelectorSettings(seed=1, tower=TowerSettings("tiny-clip"))
    check_independent(selector, judge, ["a", "b"], ["c"])
    check_independent(selector, SelectorSettings(seed=1, tower=TowerSettings(width=8)), ["a"], ["c"])
    with raises(ModelError, "imagegen.judge_seed_reused"):
        check_independent(selector, replace(judge, seed=0), ["a"], ["c"])
    with raises(ModelError, "imagegen.judge_encoder_reused"):
        check_independent(selector, SelectorSettings(seed=1), ["a"], ["c"])
    with raises(DataError, "imagegen.judge_groups_overlap"):
        check_independent(selector, judge, ["a", "b"], ["b", "c"])
