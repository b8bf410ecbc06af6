"""Metrics against statsmodels, SciPy and scikit-learn, and against hand-computed figures."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.classification import macro_f1, macro_f1_estimate
from tests.helpers.problems import raises
from toolkit.errors import DataError
from toolkit.identifiers import hidden_id
from toolkit.scoring.statistics import (
    ScoredAnswer,
    bootstrap,
    bootstrap_mean,
    bootstrap_ratio,
    compare,
    confusion_matrix,
    mcnemar_exact,
    paired_difference,
    proportion,
    summarise,
    wilson,
)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(42, 50), (0, 7), (7, 7), (1, 1), (301, 451), (5, 10_000)])
def test_wilson_is_that_of_statsmodels(successes: int, n: int, confidence: float) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    found = wilson(successes, n, confidence)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_wilson_gives_the_papers_interval_for_42_of_50() -> None:
    found = wilson(42, 50)
    assert (found.low, found.high) == pytest.approx((0.715, 0.917), abs=5e-4)


def test_without_answers_an_estimate_has_no_value() -> None:
    for found in (wilson(0, 0), proportion([], [], 100, 0), bootstrap_mean([], [], 100, 0)):
        assert (found.value, found.low, found.high, found.n, found.method) == (None, None, None, 0, "none")
        assert str(found) == "- (n 0)"


def test_impossible_counts_and_values_are_rejected() -> None:
    with pytest.raises(ValueError):
        wilson(3, 2)
    with pytest.raises(ValueError):
        bootstrap_mean([math.nan], ["a"], 100, 0)
    with pytest.raises(ValueError):
        bootstrap_mean([0.5, 0.5], ["a"], 100, 0)
    with pytest.raises(ValueError):
        paired_difference([1, 0], [1], ["a", "b"], 100, 0)


def test_bootstrap_of_single_answers_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).random(60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    ours = bootstrap_mean(values.tolist(), [str(i) for i in range(60)], 20_000, 3)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_bootstrap_by_group_has_the_variance_of_the_ratio_of_group_sums() -> None:
    # Linearised variance of a ratio of totals over groups: sum((S_g - mean * N_g)^2) / N^2. A normal interval is
    # 1.96 times its root. With 400 groups bootstrap and normal agree to a few per cent.
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 9, size=400)
    groups = np.repeat(np.arange(400), sizes)
    values = np.clip(np.repeat(rng.random(400), sizes) * 0.8 + 0.2 * rng.random(sizes.sum()), 0, 1)
    residual = np.bincount(groups, values) - values.mean() * np.bincount(groups)
    error = math.sqrt((residual**2).sum()) / sizes.sum()
    found = bootstrap_mean(values.tolist(), [str(group) for group in groups], 4000, 5)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)  # type: ignore[operator]
    # Taken as independent, the same answers would claim less than two thirds of that width.
    alone = bootstrap_mean(values.tolist(), [str(i) for i in range(len(values))], 4000, 5)
    assert alone.high - alone.low < (found.high - found.low) * 2 / 3  # type: ignore[operator]


def test_a_bootstrapped_ratio_is_that_of_scipy_and_not_the_mean_of_ratios() -> None:
    """Losses in sums of some tokens each."""
    rng = np.random.default_rng(4)
    tokens = rng.integers(1, 20, 60)
    losses = tokens * rng.normal(2.0, 0.5, 60)
    found = bootstrap_ratio(losses.tolist(), tokens.tolist(), [str(row) for row in range(60)], 9999, 0)
    stats = pytest.importorskip("scipy.stats")
    low, high = stats.bootstrap(
        (losses, tokens),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(losses.sum() / tokens.sum())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert found.value != pytest.approx((losses / tokens).mean(), abs=1e-3)


def test_bootstrap_repeats_with_its_seed_and_does_not_depend_on_the_groups_names() -> None:
    values = np.random.default_rng(0).random(60).tolist()
    groups = [f"image {number // 2}" for number in range(60)]
    assert bootstrap_mean(values, groups, 500, 7) == bootstrap_mean(values, groups, 500, 7)
    assert bootstrap_mean(values, groups, 500, 7) != bootstrap_mean(values, groups, 500, 8)
    renamed = [f"patient {99 - number // 2}" for number in range(60)]
    assert bootstrap_mean(values, renamed, 500, 7) == bootstrap_mean(values, groups, 500, 7)


def test_bootstrap_in_many_pieces_keeps_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CELLS", 7)
    sums = bootstrap.resampled_sums(np.ones((6, 1)), ["a", "b", "c", "d", "e", "f"], 101, 0)
    assert sums.shape == (101, 1)
    assert (sums == 6).all()


def test_one_group_has_a_mean_but_no_interval() -> None:
    found = proportion([0.25, 0.75], ["image", "image"], 100, 0)
    assert (found.value, found.low, found.high, found.n, found.groups) == (0.5, None, None, 2, 1)
    assert str(found) == "50.0 % (no interval, n 2)"


def test_proportion_chooses_and_names_the_appropriate_interval() -> None:
    def method(values: list[float], groups: list[str]) -> str:
        return proportion(values, groups, 200, 0).method

    assert method([1, 0, 1], ["a", "b", "c"]) == "wilson"
    assert method([1, 0, 1], ["a", "a", "c"]) == "bootstrap by group"
    assert method([0.5, 0, 1], ["a", "b", "c"]) == "bootstrap by group"
    assert method([1, 1, 1], ["a", "a", "c"]) == "wilson by group"


def test_all_correct_in_few_groups_keeps_a_wide_interval() -> None:
    # 40 right answers about 4 radiographs: Wilson's interval of 4 of 4, whose low end is 4 / (4 + 1.96^2) = 0.51.
    found = proportion([1.0] * 40, [str(i % 4) for i in range(40)], 200, 0)
    assert (found.value, found.n, found.groups, found.high) == (1.0, 40, 4, 1.0)
    assert found.low == pytest.approx(4 / (4 + 1.959964**2))


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None)
def test_mcnemar_is_the_exact_test_of_scipy(better: int, worse: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar_exact(better, worse) == pytest.approx(expected)


def test_mcnemar_is_that_of_statsmodels_and_takes_large_counts() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    assert mcnemar_exact(12, 30) == pytest.approx(tables.mcnemar([[50, 30], [12, 8]], exact=True).pvalue)
    assert mcnemar_exact(10_200, 10_000) == pytest.approx(tables.mcnemar([[0, 10_200], [10_000, 0]]).pvalue)


def test_paired_difference_counts_what_changed() -> None:
    before, after = [0, 0, 0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 1, 1]
    found = paired_difference(before, after, list("abcdefgh"), 500, 0)
    assert (found.before, found.after, found.better, found.worse) == (0.25, 0.75, 5, 1)
    assert found.difference.value == 0.5
    assert found.p_value == pytest.approx(2 * (1 + 6) / 64)  # at most one of six: (1 + 6) / 2^6, two-sided


def test_a_difference_is_clear_only_when_interval_and_test_agree() -> None:
    groups = [str(i) for i in range(100)]
    five = paired_difference([0.0] * 100, [1.0] * 5 + [0.0] * 95, groups, 2000, 0)
    assert five.difference.low is not None
    assert five.difference.low > 0
    assert five.p_value == 0.0625
    assert not five.clear
    assert paired_difference([0.0] * 100, [1.0] * 20 + [0.0] * 80, groups, 2000, 0).clear
    assert paired_difference([0.5] * 100, [0.6] * 20 + [0.5] * 80, groups, 2000, 0).clear
    assert not paired_difference([0.5] * 100, [0.5] * 100, groups, 2000, 0).clear


def test_a_paired_difference_of_fractions_has_no_mcnemar_test() -> None:
    assert paired_difference([0.5, 0.0], [1.0, 1.0], ["a", "b"], 100, 0).p_value is None


LABELS = st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["A", "B", "C", "D", None])), min_size=1)


@given(LABELS)
@settings(deadline=None)
def test_macro_f1_is_that_of_scikit_learn_over_the_true_labels(pairs: list[tuple[str, str | None]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    theirs = metrics.f1_score(
        true, [b or "(none)" for b in predicted], labels=sorted(set(true)), average="macro", zero_division=0
    )
    assert macro_f1(true, predicted) == pytest.approx(theirs)


def test_macro_f1_of_an_unread_answer_is_that_of_a_wrong_one() -> None:
    # A: 1 right, 2 true, 1 answered: 2 / 3. B: 1 right, 1 true, 1 answered: 1.
    assert macro_f1(["A", "A", "B"], ["A", None, "B"]) == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1([], []) is None


@pytest.mark.slow
def test_macro_f1_interval_is_that_of_resampling_whole_groups_one_by_one() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true = rng.choice(list("ABC"), size=120, p=[0.6, 0.3, 0.1])
    predicted = np.where(rng.random(120) < 0.7, true, rng.choice(list("ABC"), size=120))
    images = np.arange(120) // 3
    drawn = []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(images == image) for image in rng.integers(0, 40, size=40)])
        labels = sorted(set(true[rows]))
        drawn.append(metrics.f1_score(true[rows], predicted[rows], labels=labels, average="macro", zero_division=0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = macro_f1_estimate(true.tolist(), predicted.tolist(), images.astype(str).tolist(), 4000, 1)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.groups == 40


def test_confusion_counts_unread_answers_in_a_column_of_their_own() -> None:
    found = confusion_matrix(["A", "A", "B", "A"], ["A", None, "D", "A"])
    assert found.labels == ("A", "B")
    assert found.counts == {"A": {"(unreadable)": 1, "A": 2}, "B": {"D": 1}}


def row(number: int, letter: str | None, true: str = "A", **more: Any) -> ScoredAnswer:
    return ScoredAnswer(
        id=f"q{number}",
        group=f"image{number // 2}",
        scores={"accuracy": float(letter == true), "f1": None if number == 0 else 0.5},
        label=(true, letter),
        problem=None if letter else "no letter",
        **more,
    )


ROWS = [
    row(0, "A", by={"question_type": "presence"}),
    row(1, None, by={"question_type": "presence"}, truncated=True),
    row(2, "B", "B", by={"question_type": "side"}),
    row(3, None, "B"),
]


def test_a_summary_counts_every_answer_and_takes_scores_where_they_apply() -> None:
    found = summarise(ROWS, ["question_type", "view"], 200, 0)
    assert (found.overall.n, found.overall.groups) == (4, 2)
    assert (found.overall.scores["accuracy"].value, found.overall.scores["accuracy"].n) == (0.5, 4)
    assert (found.overall.scores["f1"].value, found.overall.scores["f1"].n) == (0.5, 3)
    assert (found.overall.truncated.value, found.overall.unreadable.value) == (0.25, 0.5)
    # A: 1 right, 2 true, 1 answered: 2 / 3; B alike.
    assert found.overall.macro_f1 is not None
    assert found.overall.macro_f1.value == pytest.approx(2 / 3)
    assert {value: part.n for value, part in found.by["question_type"].items()} == {
        "(not given)": 1,
        "presence": 2,
        "side": 1,
    }
    assert found.not_found == ("view",)
    assert [(failure.reason, failure.count, failure.examples) for failure in found.failures] == [
        ("no letter", 2, (hidden_id("q1"), hidden_id("q3")))
    ]


def test_a_summary_goes_through_json_without_nan() -> None:
    for rows in (ROWS, [], [replace(ROWS[0], label=None)]):
        found = summarise(rows, ["question_type"], 200, 0)
        text = json.dumps(found.to_dict(), allow_nan=False)
        assert json.loads(text)["overall"]["n"] == len(rows)


def test_two_evaluations_are_compared_on_their_common_questions() -> None:
    after = [row(number, "A" if number < 2 else "B", "A" if number < 2 else "B") for number in range(1, 6)]
    found = compare(ROWS, after, "accuracy", 200, 0)
    assert (found.only_before, found.only_after, found.paired.difference.n) == (1, 2, 3)
    assert (found.paired.before, found.paired.after) == pytest.approx((1 / 3, 1.0))
    assert found.paired.better == 2
    with raises(DataError, "evaluate.question_repeated") as caught:
        compare([*ROWS, ROWS[0]], after, "accuracy", 200, 0)
    assert (caught.problem.place, caught.problem.value) == ("accuracy", ROWS[0].id)
    with raises(DataError, "evaluate.no_common_questions"):
        compare(ROWS[:1], after, "accuracy", 200, 0)


def test_a_difference_without_any_change_still_has_a_width() -> None:
    # None of 12 changed: Wilson's upper limit for 0 of 12 is z**2 / (n + z**2) = 3.8415 / 15.8415 = 0.2425.
    found = paired_difference([0.0] * 12, [0.0] * 12, [str(n) for n in range(12)], 500, 0).difference
    assert (found.value, found.low, found.high) == pytest.approx((0, -0.2425, 0.2425), abs=1e-4)
    all_better = paired_difference([0.0] * 12, [1.0] * 12, [str(n) for n in range(12)], 500, 0)
    assert (all_better.difference.low, all_better.difference.high) == pytest.approx((0.7575, 1.0), abs=1e-4)
    assert all_better.clear
