"""Classification metrics, bins and confusion matrix, against scikit-learn, ISIC's scoring, statsmodels and by hand."""

import json
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.classification import classification_metrics, macro_f1_estimate
from tests.helpers.problems import raises
from toolkit.errors import DataError
from toolkit.scoring.statistics import (
    AGE_EDGES,
    ClassificationMetrics,
    Estimate,
    ScoredAnswer,
    bin_label,
    bootstrap,
    confusion_matrix,
    plot_confusion_matrix,
    summarise,
)
from toolkit.scoring.statistics.confusion_matrix import confusion_table

Labels = Sequence[tuple[str, str | None]]

LABELS = st.lists(
    st.tuples(st.sampled_from(["bcc", "mel", "nv"]), st.sampled_from(["bcc", "mel", "nv", "scc", None])), min_size=1
)
"""scc is predicted, but never true."""


def alone(labels: Labels) -> list[str]:
    """Return a group for each answer."""
    return [f"lesion {number}" for number in range(len(labels))]


def figures(
    labels: Labels, groups: list[str] | None = None, resamples: int = 200, **more: Any
) -> ClassificationMetrics:
    return classification_metrics(labels, alone(labels) if groups is None else groups, resamples, 0, **more)


def columns(labels: Labels) -> tuple[list[str], list[str]]:
    """Return true labels and predictions. An unparsed answer becomes a word that is no class."""
    return [a for a, _ in labels], [b or "(none)" for _, b in labels]


def skin(n: int, seed: int) -> Labels:
    """Answers about seven classes as frequent as in HAM10000, some wrong, some unread."""
    rng = np.random.default_rng(seed)
    names = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    true = rng.choice(names, size=n, p=[0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02])
    answered = np.where(rng.random(n) < 0.6, true, rng.choice(names, size=n))
    return [(str(a), None if lost else str(b)) for a, b, lost in zip(true, answered, rng.random(n) < 0.05, strict=True)]


@given(LABELS)
@settings(deadline=None, max_examples=50)
def test_balanced_accuracy_is_that_of_scikit_learn(labels: Labels) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that some answers are no true label
        theirs = metrics.balanced_accuracy_score(*columns(labels))
    assert figures(labels, resamples=10).balanced_accuracy.value == pytest.approx(theirs)


@given(LABELS)
@settings(deadline=None, max_examples=50)
def test_figures_of_each_class_are_those_of_scikit_learn(labels: Labels) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, answered = columns(labels)
    found = figures(labels, resamples=10)
    assert list(found.classes) == sorted(set(true))
    theirs = metrics.precision_recall_fscore_support(true, answered, labels=list(found.classes), zero_division=np.nan)
    for index, (name, ours) in enumerate(found.classes.items()):
        precision, recall, f1, support = (column[index] for column in theirs)
        assert (ours.n, ours.answered) == (support, answered.count(name))
        assert ours.sensitivity.value == pytest.approx(recall)
        assert ours.f1.value == pytest.approx(f1)
        assert (ours.precision.value is None) == np.isnan(precision)
        assert ours.precision.value in (None, pytest.approx(precision))
        # The rest as the class of interest: its recall is the specificity, its precision the NPV.
        rest = [a != name for a in true], [b != name for b in answered]
        for estimate, score in ((ours.specificity, metrics.recall_score), (ours.npv, metrics.precision_score)):
            expected = score(*rest, zero_division=np.nan)
            assert estimate.value == (None if np.isnan(expected) else pytest.approx(expected))


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_and_binary_figures_are_those_of_the_isic_challenge(seed: int) -> None:
    pd = pytest.importorskip("pandas")
    metrics = pytest.importorskip("isic_challenge_scoring.metrics")
    matrix = pytest.importorskip("isic_challenge_scoring.confusion").create_binary_confusion_matrix
    labels = skin(400, seed)
    true, answered = columns(labels)
    names = sorted(set(true))
    # An unread answer gives every class the probability 0, which the challenge takes as undecided.
    truth, guess = (pd.DataFrame([[float(a == name) for name in names] for a in column], columns=names)
                    for column in (true, answered))  # fmt: skip
    found = figures(labels)
    theirs = metrics.balanced_multiclass_accuracy(truth, guess, pd.Series(np.ones(len(labels))))
    assert found.balanced_accuracy.value == pytest.approx(theirs)
    assert None in dict.fromkeys(b for _, b in labels)
    for name, ours in found.classes.items():
        cells = matrix(truth[name].gt(0.5).to_numpy(), guess[name].gt(0.5).to_numpy())
        assert ours.sensitivity.value == pytest.approx(metrics.binary_sensitivity(cells))
        assert ours.specificity.value == pytest.approx(metrics.binary_specificity(cells))
        assert ours.precision.value == pytest.approx(metrics.binary_ppv(cells))
        assert ours.npv.value == pytest.approx(metrics.binary_npv(cells))
        assert ours.f1.value == pytest.approx(metrics.binary_dice(cells))
        both = (metrics.binary_sensitivity(cells) + metrics.binary_specificity(cells)) / 2
        assert ours.balanced_accuracy.value == pytest.approx(both)


def test_proportions_of_single_answers_have_the_wilson_interval_of_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    labels = skin(300, 1)
    mel = figures(labels, positive="mel").classes["mel"]
    hits = sum(a == b == "mel" for a, b in labels)
    neither = sum("mel" not in (a, b) for a, b in labels)
    for ours, successes, n in (
        (mel.sensitivity, hits, mel.n),
        (mel.specificity, neither, 300 - mel.n),
        (mel.precision, hits, mel.answered),
        (mel.npv, neither, 300 - mel.answered),
    ):
        expected = proportion.proportion_confint(successes, n, method="wilson")
        assert (ours.n, ours.groups, ours.method) == (n, n, "wilson")
        assert (ours.value, ours.low, ours.high) == pytest.approx((successes / n, *expected))
    # F1 = 2 s / (1 + s) of the fraction s of hits among answers whose true or predicted label is melanoma.
    limits = np.array(proportion.proportion_confint(hits, 300 - neither, method="wilson"))
    assert (mel.f1.low, mel.f1.high) == pytest.approx(tuple(2 * limits / (1 + limits)))


def test_f1_interval_is_close_to_that_of_drawing_single_answers() -> None:
    # Two methods for one interval, which agree to a few per cent with hundreds of answers.
    metrics = pytest.importorskip("sklearn.metrics")
    labels = skin(1500, 2)
    true, answered = (np.array(column) == "nv" for column in columns(labels))
    rng = np.random.default_rng(0)
    drawn = [metrics.f1_score(true[rows], answered[rows]) for rows in rng.integers(0, 1500, size=(400, 1500))]
    ours = figures(labels).classes["nv"].f1
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)


@pytest.mark.slow
def test_intervals_by_group_are_those_of_resampling_whole_groups_one_by_one() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = [pair for pair in skin(500, 3) if pair[0] in ("bkl", "mel", "nv")]
    true, answered = (np.array(column) for column in columns(labels))
    groups = np.arange(len(labels)) // 3
    of_group = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(300):
        rows = np.concatenate([of_group[group] for group in rng.integers(0, len(of_group), size=len(of_group))])
        a, b = true[rows], answered[rows]
        scores = metrics.precision_recall_fscore_support(a, b, labels=["mel"], zero_division=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            balanced = metrics.balanced_accuracy_score(a, b)
        both = metrics.balanced_accuracy_score(a == "mel", b == "mel")
        rest = metrics.recall_score(a != "mel", b != "mel"), metrics.precision_score(a != "mel", b != "mel")
        drawn.append([balanced, *(float(score[0]) for score in scores[:3]), *rest, both])
    lows, highs = np.quantile(drawn, [0.025, 0.975], axis=0)
    found = figures(labels, [str(group) for group in groups], resamples=4000)
    mel = found.classes["mel"]
    ours = (
        found.balanced_accuracy, mel.precision, mel.sensitivity, mel.f1, mel.specificity, mel.npv, mel.balanced_accuracy
    )  # fmt: skip
    assert {estimate.method for estimate in ours} == {"bootstrap by group"}
    assert found.groups == len(of_group)
    assert [estimate.low for estimate in ours] == pytest.approx(lows, abs=0.03)
    assert [estimate.high for estimate in ours] == pytest.approx(highs, abs=0.03)


def test_an_estimate_counts_the_groups_of_its_own_answers() -> None:
    # Two lesions with two images each. Both images of the melanoma are correct, and one of the nevus is not.
    found = figures([("mel", "mel"), ("mel", "mel"), ("nv", "nv"), ("nv", "mel")], ["a", "a", "b", "b"])
    mel = found.classes["mel"]
    assert (mel.sensitivity.n, mel.sensitivity.groups, mel.sensitivity.method) == (2, 1, "wilson by group")
    assert (mel.specificity.n, mel.specificity.groups, mel.specificity.method) == (2, 1, "none")
    assert (mel.precision.n, mel.precision.groups, mel.precision.method) == (3, 2, "bootstrap by group")
    assert (mel.npv.n, mel.npv.groups, mel.npv.method) == (1, 1, "wilson")


def test_a_bootstrap_sample_without_the_class_does_not_count() -> None:
    # One of two groups has the class, with one of two correct: a sample with it gives 0.5, a quarter lack it.
    found = figures([("mel", "mel"), ("mel", None), ("nv", "nv"), ("nv", "nv")], ["a", "a", "b", "b"])
    assert found.classes["mel"].sensitivity.method == "none"  # one group
    labels = [("mel", "mel"), ("mel", None)] * 2 + [("nv", "nv")] * 6
    mel = figures(labels, list("aabbccddee"), resamples=2000).classes["mel"].sensitivity
    assert (mel.value, mel.low, mel.high, mel.groups) == (0.5, 0.5, 0.5, 2)


def test_all_correct_answers_give_an_interval_with_a_width() -> None:
    # The mean of two fractions p and q is (p - (1 - q) + 1) / 2: half of Newcombe's score interval for a difference.
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.confint_proportions_2indep(8, 8, 0, 30, compare="diff", method="newcomb")
    found = figures([("mel", "mel")] * 8 + [("nv", "nv")] * 30).balanced_accuracy
    assert (found.value, found.method) == (1.0, "wilson by class")
    assert (found.low, found.high) == pytest.approx(((low + 1) / 2, (high + 1) / 2))


def test_constant_predictions_give_an_interval_with_a_width() -> None:
    # Sensitivities 1 and 0: a bootstrap interval would be 0.5 to 0.5.
    found = figures([("mel", "nv")] * 8 + [("nv", "nv")] * 30)
    accuracy = found.balanced_accuracy
    assert accuracy.value == 0.5
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < 0.48
    assert accuracy.high > 0.6


def test_macro_f1_of_all_correct_answers_has_an_interval_with_a_width() -> None:
    # Two equal classes: 1 - sqrt(2 d^2) / 2 with d the distance of F1's low limit, 1 - 2 l / (1 + l) with Wilson's l.
    found = macro_f1_estimate(["A", "B"] * 10, ["A", "B"] * 10, [str(i) for i in range(20)], 100, 0)
    low = 10 / (10 + 1.959964**2)
    assert found.value == 1.0
    assert found.low == pytest.approx(1 - (1 - 2 * low / (1 + low)) / np.sqrt(2))


def test_a_class_that_is_predicted_but_never_true_is_counted_and_has_no_metrics() -> None:
    found = figures([("mel", "scc"), ("mel", "mel"), ("nv", "nv"), ("nv", None)])
    assert (found.n, found.unreadable, found.foreign) == (4, 1, 1)
    assert list(found.classes) == ["mel", "nv"]
    assert found.balanced_accuracy.value == 0.5


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    found = figures([("mel", "nv"), ("nv", "nv"), ("nv", "nv")]).classes["mel"]
    assert (found.n, found.answered) == (1, 0)
    assert (found.precision.value, found.precision.low, found.precision.n) == (None, None, 0)
    assert (found.sensitivity.value, found.specificity.value, found.f1.value) == (0, 1, 0)
    assert found.npv.value == pytest.approx(2 / 3)


def test_unparsed_answers_miss_their_class_and_are_negative_for_the_others() -> None:
    found = figures([("mel", None)] * 4 + [("nv", None)] * 6)
    assert (found.unreadable, found.foreign, found.balanced_accuracy.value) == (10, 0, 0)
    for ours in found.classes.values():
        assert (ours.sensitivity.value, ours.specificity.value, ours.balanced_accuracy.value) == (0, 1, 0.5)
        assert (ours.precision.value, ours.f1.value) == (None, 0)
    assert found.classes["mel"].npv.value == 0.6
    assert found.balanced_accuracy.high > 0.2  # type: ignore[operator]


def test_one_group_has_figures_but_no_interval() -> None:
    found = figures([("mel", "mel"), ("mel", "nv"), ("nv", "nv"), ("nv", "mel")], ["patient"] * 4)
    mel = found.classes["mel"]
    for estimate in (found.balanced_accuracy, mel.sensitivity, mel.specificity, mel.f1, mel.balanced_accuracy):
        assert (estimate.low, estimate.high, estimate.method, estimate.groups) == (None, None, "none", 1)
    assert (found.balanced_accuracy.value, mel.f1.value) == (0.5, 0.5)


def test_of_no_answers_nothing_is_said() -> None:
    found = figures([])
    assert (found.n, found.groups, found.unreadable, found.foreign, found.classes) == (0, 0, 0, 0, {})
    assert found.balanced_accuracy == Estimate(None, 0, None, None, "none", 0)
    mel = figures([], positive="mel").classes["mel"]
    assert (mel.n, mel.sensitivity.value, mel.npv.value, mel.balanced_accuracy.value) == (0, None, None, None)


def test_the_positive_class_has_figures_even_where_it_is_never_true() -> None:
    labels = [("bcc", "mel"), ("bcc", "bcc"), ("nv", "nv"), ("nv", "nv")]
    found = figures(labels, positive="mel")
    mel = found.classes["mel"]
    assert (found.positive, mel.n, mel.answered, found.foreign) == ("mel", 0, 1, 0)
    assert (mel.sensitivity.value, mel.specificity.value, mel.precision.value) == (None, 0.75, 0)
    assert mel.balanced_accuracy.value == 0.75
    # It is no class of the balanced accuracy.
    assert found.balanced_accuracy == figures(labels).balanced_accuracy
    assert found.balanced_accuracy.value == 0.75


def test_classification_metrics_depend_on_the_seed_and_not_on_class_order() -> None:
    labels, groups = skin(200, 4), [str(i // 2) for i in range(200)]
    assert classification_metrics(labels, groups, 100, 7) == classification_metrics(labels, groups, 100, 7)
    assert classification_metrics(labels, groups, 100, 7) != classification_metrics(labels, groups, 100, 8)
    assert list(classification_metrics(labels[::-1], groups, 100, 7).classes) == sorted({a for a, _ in labels})


def test_sequences_of_different_length_are_rejected() -> None:
    with pytest.raises(ValueError):
        classification_metrics([("a", "a"), ("b", "b")], ["x"], 10, 0)


@pytest.mark.parametrize("images", [1, 2])
def test_ten_thousand_answers_of_seven_classes_take_little_ram(images: int) -> None:
    labels = skin(10_000, 5)
    groups = [str(number // images) for number in range(10_000)]
    tracemalloc.start()
    classification_metrics(labels, groups, 2000, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * bootstrap._CELLS


def scored(labels: Labels, **by: list[str]) -> list[ScoredAnswer]:
    return [
        ScoredAnswer(f"q{i}", f"lesion {i // 2}", {"accuracy": float(a == b)}, (a, b), {k: v[i] for k, v in by.items()})
        for i, (a, b) in enumerate(labels)
    ]


def test_a_summary_has_classification_metrics_overall_and_by_column() -> None:
    labels = skin(120, 6)
    ages = [bin_label(5 * (i % 20), (0, 5, 10, 60)) for i in range(120)]
    found = summarise(scored(labels, age=ages), ["age"], 200, 0, positive="mel")
    groups = [f"lesion {i // 2}" for i in range(120)]
    assert found.overall.labels == classification_metrics(labels, groups, 200, 0, "mel")
    true, predicted = [a for a, _ in labels], [b for _, b in labels]
    assert found.overall.macro_f1 == macro_f1_estimate(true, predicted, groups, 200, 0)
    # 5-9 precedes 10-59.
    assert list(found.by["age"]) == ["0-4", "5-9", "10-59", "60+"]
    metrics = pytest.importorskip("sklearn.metrics")
    for value, part in found.by["age"].items():
        of_band = [pair for pair, age in zip(labels, ages, strict=True) if age == value]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = metrics.balanced_accuracy_score(*columns(of_band))
        assert part.labels is not None
        assert part.labels.balanced_accuracy.value == pytest.approx(theirs)
        assert part.labels.classes["mel"].n == sum(a == "mel" for a, _ in of_band)


@pytest.mark.parametrize(
    "rows", [scored(skin(40, 7)), scored([("mel", None)]), scored([]), [ScoredAnswer("q", "g", {})]]
)
def test_classification_metrics_are_json_without_nan(rows: list[ScoredAnswer]) -> None:
    found = summarise(rows, [], 100, 0, positive="mel").to_dict()
    plain = json.loads(json.dumps(found, allow_nan=False))["overall"]["labels"]
    if not rows or rows[0].label is None:
        assert plain is None
    else:
        assert plain["positive"] == "mel"
        assert set(plain["classes"]["mel"]["specificity"]) >= {"value", "n", "low", "high"}
        assert plain["balanced_accuracy"]["n"] == len(rows)


def test_ages_fall_into_the_bands_of_skin_registers() -> None:
    assert [bin_label(age, AGE_EDGES) for age in (0, 29, 30, 44, 45, 59, 60, 74, 75, 120)] == [
        *("0-29", "0-29", "30-44", "30-44", "45-59", "45-59", "60-74", "60-74", "75+", "75+")
    ]
    assert {bin_label(age, AGE_EDGES) for age in (None, "", "  ", float("nan"), "NaN")} == {"(not given)"}
    assert [bin_label(age, AGE_EDGES) for age in ("55.0", np.float32(55), "unknown", -3)] == [
        "45-59",
        "45-59",
        "unknown",
        "<0",
    ]
    assert [bin_label(grade, (0, 1, 2)) for grade in (0, 1, 7)] == ["0", "1", "2+"]


@given(st.floats(0, 200), st.lists(st.integers(0, 150), min_size=1, unique=True).map(sorted))
def test_a_band_is_that_of_numpy(value: float, edges: list[int]) -> None:
    index = int(np.digitize(value, edges))
    name = bin_label(value, edges)
    # The first value of a band has its name, and so has every value up to the next edge.
    assert name == (bin_label(edges[index - 1], edges) if index else f"<{edges[0]}")
    assert len({bin_label(edge, edges) for edge in edges} | {f"<{edges[0]}"}) == len(edges) + 1


@pytest.mark.parametrize("edges", [(), (30, 30), (45, 30)])
def test_edges_that_do_not_rise_are_rejected(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        bin_label(50, edges)


def test_the_plotted_table_is_the_confusion_matrix_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = [*skin(300, 8), ("mel", "scc"), ("nv", "lentigo"), ("nv", None)]
    true, answered = columns(labels)
    names = sorted(set(true))
    found, counts = confusion_table(confusion_matrix(true, [b for _, b in labels]))
    assert found == (*names, "(other)", "(unreadable)")
    known = [name if name in (*names, "(none)") else "(other)" for name in answered]
    theirs = metrics.confusion_matrix(true, known, labels=[*names, "(other)", "(none)"])
    assert (counts == theirs[: len(names)]).all()


def test_columns_without_answers_are_not_drawn() -> None:
    found, counts = confusion_table(confusion_matrix(["a", "b"], ["b", "b"]))
    assert (found, counts.tolist()) == (("a", "b"), [[0, 1], [0, 1]])
    assert confusion_table(confusion_matrix(["a"], [None]))[0] == ("a", "(unreadable)")


def test_the_plot_of_a_confusion_matrix_is_complete_and_deterministic(tmp_path: Path) -> None:
    found = confusion_matrix(["mel", "$x_$", "mel", "nv"], ["mel", "nv", None, "scc"])
    file = plot_confusion_matrix(found, tmp_path / "new" / "confusion.png", "Costs $5, not $x_{ or % " * 4)
    first = file.read_bytes()
    assert plot_confusion_matrix(found, file, "Costs $5, not $x_{ or % " * 4).read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == ["confusion.png"]
    shown = cv2.imread(str(file))
    assert shown is not None
    assert min(shown.shape[:2]) > 300


def test_the_colour_of_a_cell_is_its_fraction_of_the_row(tmp_path: Path) -> None:
    # All predictions are b: of the two columns the right one is dark, the left one pale.
    shown = cv2.imread(str(plot_confusion_matrix(confusion_matrix(["a", "b"], ["b", "b"]), tmp_path / "c.png", "c")))
    assert shown is not None
    dark = shown.sum(axis=2) < 350
    left, right = np.array_split(dark, 2, axis=1)
    assert left.mean() < 0.1
    assert right.mean() > 0.5


def test_an_empty_confusion_matrix_cannot_be_drawn(tmp_path: Path) -> None:
    with raises(DataError, "evaluate.confusion_empty"):
        plot_confusion_matrix(confusion_matrix([], []), tmp_path / "c.png", "c")
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_matplotlibs_global_state_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import toolkit.scoring.statistics as m;"
        "assert 'matplotlib' not in sys.modules;"
        "import matplotlib; before = list(dict.items(matplotlib.rcParams));"
        "m.plot_confusion_matrix(m.confusion_matrix(['a'], ['a']), Path(sys.argv[1]), 'c');"
        "assert list(dict.items(matplotlib.rcParams)) == before;"
        "assert matplotlib.get_backend(auto_select=False) is None; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c.png")], check=True)
