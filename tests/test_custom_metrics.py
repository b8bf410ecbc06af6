"""Custom metrics of a recipe: their values in the results, errors, and that a function runs once per set of answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.data.sample import Answer, Sample
from toolkit.errors import MetricError, RecipeError
from toolkit.evaluation.custom_metrics import CustomMetrics
from toolkit.recipe import dump_recipe

METRICS = """
from pathlib import Path

CALLS = Path(__file__).with_suffix(".calls")

def words(samples, answers):
    with CALLS.open("a") as file:
        file.write("call\\n")
    return [min(len(answer.text.split()), 10) / 10 for answer in answers]

def several(samples, answers):
    return {"first": [1.0 if sample.id.endswith("0") else None for sample in samples], "whole": 0.25}

def raising(samples, answers):
    return [1 / 0]

def too_few(samples, answers):
    return [0.5]

def too_large(samples, answers):
    return [7.0 for _ in answers]

def text(samples, answers):
    return "0.5"

def generator(samples, answers):
    return (1.0 for _ in answers)

def two_columns(samples, answers):
    import numpy
    return numpy.zeros((len(answers), 2))

def one_argument(samples):
    return [1.0 for _ in samples]

def nothing(samples, answers):
    return {}

def unnamed(samples, answers):
    return {None: [1.0 for _ in answers]}

def not_finite(samples, answers):
    return float("nan")

def arrays(samples, answers):
    import numpy
    return {
        "mean": numpy.array(0.5),
        "float": numpy.float32(0.25),
        "column": numpy.ones((len(answers), 1)),
        "rounded": [1.0000001, -1e-9, True],
    }
"""


def answered(count: int = 3) -> list[tuple[Sample, Answer]]:
    return [(Sample(str(n), "vqa", "g", (), {}, {"answer": "a"}), Answer("one two " * n)) for n in range(count)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_metrics.py"
    path.write_text(METRICS, encoding="utf-8")
    return path


def custom(file: Path, *names: str, taken: frozenset[str] = frozenset()) -> CustomMetrics:
    return CustomMetrics(tuple(f"{file}:{name}" for name in names), file.parent / "metrics", taken)


def test_a_function_returns_values_of_each_answer_or_of_all(file: Path) -> None:
    found = custom(file, "words", "several").values(answered())
    assert found.each == {"words": [0.0, 0.2, 0.4], "first": [1.0, None, None]}
    assert found.whole == {"whole": 0.25}


def test_arrays_are_values_and_rounding_is_no_error(file: Path) -> None:
    found = custom(file, "arrays").values(answered())
    assert found.whole == {"mean": 0.5, "float": 0.25}
    assert found.each == {"column": [1.0, 1.0, 1.0], "rounded": [1.0, 0.0, 1.0]}


def test_the_same_answers_are_scored_once_and_changed_code_scores_them_again(file: Path) -> None:
    calls = file.with_suffix(".calls")
    for _ in range(2):
        custom(file, "words").values(answered())
    assert calls.read_text().count("call") == 1
    custom(file, "words").values(answered(2))
    file.write_text(METRICS + "\n# changed\n", encoding="utf-8")
    custom(file, "words").values(answered())
    assert calls.read_text().count("call") == 3
    file.with_name("neighbour.py").write_text("SYNONYMS = ()\n", encoding="utf-8")  # the file may import it
    custom(file, "words").values(answered())
    assert calls.read_text().count("call") == 4


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("raising", "evaluate.metric_raised"),
        ("too_few", "evaluate.metric_count"),
        ("too_large", "evaluate.metric_out_of_range"),
        ("not_finite", "evaluate.metric_out_of_range"),
        ("text", "evaluate.metric_not_a_number"),
        ("generator", "evaluate.metric_not_a_number"),
        ("two_columns", "evaluate.metric_not_a_number"),
        ("one_argument", "evaluate.metric_signature_wrong"),
        ("nothing", "evaluate.metric_name_missing"),
        ("unnamed", "evaluate.metric_name_missing"),
        ("missing", "evaluate.function_missing"),
        ("CALLS", "evaluate.metric_not_a_function"),
    ],
)
def test_a_metric_that_cannot_be_used_is_an_error(file: Path, name: str, code: str) -> None:
    with raises(MetricError, code) as caught:
        custom(file, name).values(answered())
    assert "my_metrics.py" in str(caught.problem.place)


def test_the_error_of_an_exception_names_its_line(file: Path) -> None:
    with raises(MetricError, "evaluate.metric_raised") as caught:
        custom(file, "raising").values(answered())
    line = METRICS.splitlines().index("    return [1 / 0]") + 1
    assert f"my_metrics.py:{line}" in str(caught.problem.remedy)


def test_a_metric_must_not_have_the_name_of_a_score(file: Path) -> None:
    with raises(MetricError, "evaluate.metric_name_taken"):
        custom(file, "words", taken=frozenset({"words"})).values(answered())


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        (["my_metrics.py"], "recipe.custom_metric_malformed"),
        (["my_metrics.py:words", "other.py:words"], "recipe.custom_metric_name_taken"),
        (["absent.py:words"], "recipe.file_missing"),
    ],
)
def test_a_recipe_with_a_wrong_metric_is_rejected(tmp_path: Path, file: Path, entries: list[str], code: str) -> None:
    small_recipe(tmp_path, {"evaluate": {"metrics": [f"{file}:words"]}})
    recipe = tmp_path / "small.toml"
    recipe.write_text(recipe.read_text().replace(f'"{file}:words"', json.dumps(entries)[1:-1]), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, files=True)
    assert code in {problem.code for problem in caught.value.problems}


@pytest.mark.slow
def test_an_evaluation_has_custom_metrics_with_intervals_and_the_baseline(tmp_path: Path, file: Path) -> None:
    from toolkit.evaluation.evaluate import evaluate

    names: dict[str, Any] = {"metrics": [f"{file}:words", f"{file}:several"]}
    recipe = small_recipe(tmp_path, {"evaluate": names})
    assert dump_recipe(recipe).count("my_metrics.py") == 2
    with context_of(recipe) as context:
        result = evaluate(context, "before", None, ())
    words = result.also["words"]
    assert words.value.n == 12
    assert words.value.low is not None
    assert words.baseline.value is not None
    whole = result.set_metrics["whole"]
    assert (whole.value.value, whole.value.n, whole.value.low, whole.baseline.value) == (0.25, 12, None, 0.25)
    # The model's answers and those of the baseline are scored once each.
    assert file.with_suffix(".calls").read_text().count("call") == 2
