"""Metrics of a whole set: intervals by group, paired differences, and a task that has one, from rows to the tables."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.test_custom_task import block
from toolkit.cli import main
from toolkit.pipeline.run_results import read_results
from toolkit.scoring.statistics import bootstrap_mean, proportion, set_differences, set_estimates

GROUPS = [f"patient {i // 3}" for i in range(90)]


def mean(parts: Sequence[float]) -> Mapping[str, float | None]:
    return {"mean": float(np.mean(parts))}


def micro_f1(parts: Sequence[tuple[int, int]]) -> Mapping[str, float | None]:
    true, predicted = zip(*parts, strict=True)
    return {"f1": float(f1_score(true, predicted)) if any(true) else None}


def test_the_interval_of_a_mean_is_that_of_the_bootstrap_by_group() -> None:
    values = np.random.default_rng(0).random(90).tolist()
    found = set_estimates(values, GROUPS, mean, 2000, 1)["mean"]
    expected = bootstrap_mean(values, GROUPS, 2000, 1)
    assert found.value == pytest.approx(expected.value)
    assert (found.n, found.groups, found.method) == (90, 30, expected.method)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_correlated_answers_of_one_group_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).random(30), 3).tolist()
    by_group = set_estimates(values, GROUPS, mean, 1000, 1)["mean"]
    alone = set_estimates(values, [str(i) for i in range(90)], mean, 1000, 1)["mean"]
    width = [(one.high or 0) - (one.low or 0) for one in (by_group, alone)]
    assert width[0] == pytest.approx(width[1] * 3**0.5, rel=0.15)


def test_a_difference_draws_the_same_groups_of_both() -> None:
    rng = np.random.default_rng(0)
    true, guesses = rng.integers(0, 2, 90), rng.integers(0, 2, 90)
    before = list(zip(true.tolist(), guesses.tolist(), strict=True))
    after = [(one, one if i < 30 else guess) for i, (one, guess) in enumerate(before)]
    found = set_differences(before, after, GROUPS, micro_f1, 500, 1)["f1"]
    expected = f1_score(true, [guess for _, guess in after]) - f1_score(true, guesses)
    assert found.value == pytest.approx(expected)
    assert (found.low or 0) > 0
    same = set_differences(before, before, GROUPS, micro_f1, 500, 1)["f1"]
    assert (same.value, same.method, same.low) == (0, "wilson of no change", -(same.high or 0))


@pytest.mark.parametrize("value", [0, 1])
def test_a_metric_at_its_limit_has_the_interval_of_a_proportion_of_groups(value: int) -> None:
    found = set_estimates([value] * 90, GROUPS, mean, 100, 1)["mean"]
    expected = proportion([value] * 30, [str(i) for i in range(30)], 100, 1)
    assert (found.value, found.low, found.high) == (value, expected.low, expected.high)
    assert (found.n, found.groups, found.method) == (90, 30, "wilson by group")


def test_a_metric_that_is_not_defined_has_no_value() -> None:
    found = set_estimates([(0, 0)] * 4, list("abcd"), micro_f1, 100, 0)["f1"]
    assert (found.value, found.n, found.low, found.method) == (None, 4, None, "none")
    assert set_estimates([(1, 1), (1, 0)], ["a", "a"], micro_f1, 100, 0)["f1"].low is None  # one group


def test_a_metric_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="f1"):
        set_estimates([0.0], ["a"], lambda parts: {"f1": float("nan")}, 100, 0)


METRIC = """
def part(sample, answer):
    return sample.reference["side"] == "left", answer.values.get("side") == "left"


def found_left(parts):
    left = [found for is_left, found in parts if is_left]
    return {"recall of left": sum(left) / len(left) if left else None}


TASK = Task("""


@pytest.mark.slow
def test_a_task_with_a_metric_of_the_set_has_it_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = block("my_task.py").replace("\nTASK = Task(", METRIC).replace("import Answer", "import SetMetrics, Answer")
    code = code.replace("    labels=lambda", "    set_metrics=SetMetrics(part, found_left),\n    labels=lambda")
    Path("my_task.py").write_text(code, encoding="utf-8")
    recipe = re.sub(r"\[grpo\].*?\n\n", "", block("my.toml"), flags=re.DOTALL).replace("test = 8", "test = 24")
    Path("my.toml").write_text(recipe, encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["run", "my.toml"])
    assert left.value.code == 0
    results = read_results("runs/my")
    found = results.evaluations["sft"].set_metrics["recall of left"]
    assert found.value.n == 24
    assert found.baseline.value in (0.0, 1.0)  # the majority baseline always names the same side
    assert list(found.differences) == ["baseline", "before"]
    before = results.evaluations["before"].set_metrics["recall of left"].value.value
    assert found.value.value is not None
    assert found.differences["baseline"].value == pytest.approx(found.value.value - found.baseline.value)
    assert found.differences["before"].value == pytest.approx(found.value.value - (before or 0.0))
    assert "recall of left" in capsys.readouterr().out
    card = (results.folder / "stages" / "export" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"| recall of left | 24 | {100 * found.value.value:.1f} %" in card
