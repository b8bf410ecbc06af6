"""The reward table: weights, custom rewards, statistics of a step, explanations."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.helpers.problems import raises
from toolkit.data.sample import Answer
from toolkit.errors import NOTHING, Problem, RecipeError, RewardError
from toolkit.identifiers import hidden_id
from toolkit.tasks import TASKS
from toolkit.tasks.mcq import rewards as mcq
from toolkit.tasks.vqa import rewards as vqa
from toolkit.training.reward_statistics import group_statistics
from toolkit.training.rewards import RewardScore, RewardTable, explain, load_custom, reward_table

RIGHT = Answer(
    "B",
    {"letter": "B", "text": "Pneumonia", "explanation": "Right lower lobe opacity", "has_format": True},
)


def problems(task: str, weights: dict[str, float], custom: list[str], base: Path) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        reward_table(TASKS[task], weights, custom, base)
    return caught.value.problems


def write(folder: Path, code: str) -> str:
    (folder / "mine.py").write_text(code)
    return "mine.py:bonus"


def test_the_total_is_the_weighted_sum(tmp_path: Path) -> None:
    scored = reward_table(TASKS["mcq"], {}, [], tmp_path).score(mcq.EXAMPLE, RIGHT)
    # Explanation: 3 common words of 4 and 5, so 6 / 9. Evidence: right, lower, lobe of 4. 1 + 0.4 + 0.15 + 0.1 + 0.1.
    assert scored.components == pytest.approx(
        {"letter": 1.0, "explanation": 2 / 3, "evidence": 0.75, "format": 1.0, "brevity": 1.0}
    )
    assert scored.total == pytest.approx(1.75)


def test_a_reward_that_does_not_apply_does_not_change_the_total(tmp_path: Path) -> None:
    table = reward_table(TASKS["vqa"], {"exact": 2.0}, [], tmp_path)
    scored = table.score(vqa.CLOSED_EXAMPLE, Answer("Yes", {"text": "Yes"}))
    assert scored == RewardScore(2.1, {"exact": 1.0, "token_f1": None, "format": 1.0})


def test_weight_zero_disables_a_reward(tmp_path: Path) -> None:
    table = reward_table(TASKS["mcq"], {"explanation": 0, "evidence": 0.0}, [], tmp_path)
    assert list(table.rewards) == list(table.weights) == ["letter", "format", "brevity"]


def test_all_problems_of_the_weights_are_reported_together(tmp_path: Path) -> None:
    weights = {"lettr": 1.0, "format": -0.1, "brevity": float("nan"), "letter": float("inf"), "zzz": 1.0}
    found = problems("mcq", weights, [], tmp_path)
    assert [(one.code, one.place, repr(one.value)) for one in found] == [
        ("rewards.weight_not_finite", "rewards.letter", "inf"),
        ("rewards.weight_negative", "rewards.format", "-0.1"),
        ("rewards.weight_not_finite", "rewards.brevity", "nan"),
        ("rewards.name_unknown", "rewards.lettr", "'lettr'"),
        ("rewards.name_unknown", "rewards.zzz", "'zzz'"),
    ]
    assert found[3].remedy == "Did you mean letter?"
    assert all(name in found[4].remedy for name in ("letter", "explanation", "evidence", "format", "brevity"))


def test_only_zero_weights_are_rejected(tmp_path: Path) -> None:
    (found,) = problems("vqa", {"exact": 0, "token_f1": 0, "format": 0}, [], tmp_path)
    assert (found.code, found.place) == ("rewards.all_weights_zero", "rewards")
    assert found.value == {"exact": 0, "token_f1": 0, "format": 0}


def test_a_custom_reward_is_found_beside_the_recipe_with_weight_1(tmp_path: Path) -> None:
    entry = write(tmp_path, "def bonus(sample, answer):\n    return 0.5 if 'right' in answer.text else None\n")
    table = reward_table(TASKS["vqa"], {}, [entry], tmp_path)
    assert table.weights["bonus"] == 1.0
    scored = table.score(vqa.EXAMPLE, Answer("right", {"text": "right"}))
    # right against right lower lobe: 2 / 4 of F1, format 0.1, bonus 0.5.
    assert scored.total == pytest.approx(1.1)


def test_an_edited_custom_reward_takes_effect_and_writes_no_bytecode(tmp_path: Path) -> None:
    assert load_custom(write(tmp_path, "def bonus(s, a): return 0.1\n"), tmp_path)(vqa.EXAMPLE, Answer("")) == 0.1
    assert load_custom(write(tmp_path, "def bonus(s, a): return 0.2\n"), tmp_path)(vqa.EXAMPLE, Answer("")) == 0.2
    assert not (tmp_path / "__pycache__").exists()


def test_a_custom_reward_may_use_dataclasses_and_annotations(tmp_path: Path) -> None:
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Points:\n    value: float\n"
        "def bonus(sample, answer):\n    return Points(1.0).value\n"
    )
    assert load_custom(write(tmp_path, code), tmp_path)(vqa.EXAMPLE, Answer("")) == 1.0


@pytest.mark.parametrize(
    ("entry", "source", "code", "ending", "value"),
    [
        ("mine.py", "", "entry_malformed", "mine.py", None),
        ("mine.txt:bonus", "", "entry_malformed", "mine.txt:bonus", None),
        ("mime.py:bonus", "", "file_missing", "mime.py", None),
        ("nowhere/mine.py:bonus", "", "file_missing", "nowhere/mine.py", None),
        ("mine.py:bonos", "def bonus(sample, answer): return 1\n", "function_missing", "mine.py", None),
        ("mine.py:bonus", "x = 1\n", "function_missing", "mine.py", None),
        ("mine.py:bonus", "x = 1\ndef bonus(sample, answer:\n", "file_syntax_invalid", "mine.py:2", "was never closed"),
        ("mine.py:bonus", "x = 1\ny = x / 0\n", "file_raised", "mine.py:2", "ZeroDivisionError"),
        ("mine.py:bonus", "import no_such_package_at_all\n", "file_raised", "mine.py:1", "ModuleNotFoundError"),
        ("mine.py:bonus", "bonus = 3\n", "not_a_function", "mine.py:bonus", "3"),
        ("mine.py:bonus", "def bonus(completions): return 1\n", "signature_wrong", "mine.py:bonus", "(completions)"),
        ("mine.py:bonus", "def bonus(a, b, *, c): return 1\n", "signature_wrong", "mine.py:bonus", "(a, b, *, c)"),
        ("mine.py:letter", "def letter(a, b): return 1\n", "name_taken", "", "mine.py:letter"),
        ("mine.py:total", "def total(a, b): return 1\n", "name_taken", "", "mine.py:total"),
    ],
)
def test_an_unusable_custom_reward_is_reported_with_its_place(
    tmp_path: Path, entry: str, source: str, code: str, ending: str, value: str | None
) -> None:
    write(tmp_path, source)
    (found,) = problems("mcq", {}, [entry], tmp_path)
    assert found.code == f"rewards.{code}"
    assert found.place.startswith("rewards.custom[0]")
    assert found.place.endswith(ending)
    assert found.value is NOTHING if value is None else value in repr(found.value)


def test_a_misspelt_file_or_function_is_suggested(tmp_path: Path) -> None:
    write(tmp_path, "def bonus(sample, answer): return 1\n")
    for entry, name in (("mime.py:bonus", "mine.py"), ("mine.py:bonos", "bonus")):
        (found,) = problems("mcq", {}, [entry], tmp_path)
        assert found.remedy == f"Did you mean {name}?"


def test_the_weight_of_a_custom_reward_that_does_not_load_is_not_a_second_problem(tmp_path: Path) -> None:
    found = problems("mcq", {"bonus": 0.5}, ["mine.py:bonus", "mine.py:bonus"], tmp_path)
    assert [one.code for one in found] == ["rewards.file_missing", "rewards.name_taken"]
    assert [one.place.split(":")[0] for one in found] == ["rewards.custom[0]", "rewards.custom[1]"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01, "1", [1.0], 1j])
def test_a_value_outside_0_to_1_is_an_error_with_reward_sample_and_value(value: object) -> None:
    table = RewardTable(TASKS["mcq"], {"mine": lambda sample, answer: cast(float, value)}, {"mine": 1.0})
    with raises(RewardError, "rewards.value_out_of_range") as caught:
        table.score(mcq.EXAMPLE, RIGHT)
    assert caught.problem.place == f"reward mine, {hidden_id('example')}"
    assert caught.problem.value is value


@pytest.mark.parametrize("value", [True, 1, np.float32(0.25), 1.0 + 1e-12, -1e-12])
def test_any_real_number_is_accepted_with_a_rounding_tolerance(value: float) -> None:
    table = RewardTable(TASKS["mcq"], {"mine": lambda sample, answer: value}, {"mine": 1.0})
    scored = table.score(mcq.EXAMPLE, RIGHT)
    assert type(scored.components["mine"]) is float
    assert scored.total == pytest.approx(float(value))
    assert 0 <= scored.total <= 1


def test_a_reward_that_raises_is_an_error_with_its_line(tmp_path: Path) -> None:
    entry = write(tmp_path, "def bonus(sample, answer):\n    return {}['nothing']\n")
    table = reward_table(TASKS["mcq"], {}, [entry], tmp_path)
    with raises(RewardError, "rewards.function_raised") as caught:
        table.score(mcq.EXAMPLE, RIGHT)
    assert caught.problem.place == f"reward bonus, {hidden_id('example')}"
    assert repr(caught.problem.value) == "KeyError: '…'"
    assert "mine.py:2" in caught.problem.remedy


def test_a_sample_without_an_applicable_reward_is_an_error() -> None:
    table = RewardTable(TASKS["mcq"], {"mine": lambda sample, answer: None}, {"mine": 1.0})
    with raises(RewardError, "rewards.none_applies") as caught:
        table.score(mcq.EXAMPLE, RIGHT)
    assert (caught.problem.place, caught.problem.value) == (hidden_id("example"), ["mine"])


def scored(total: float, **components: float | None) -> RewardScore:
    return RewardScore(total, components)


def test_statistics_of_a_step_are_computed_within_the_groups() -> None:
    scored_PG = [
        [scored(1.0, a=1.0, b=None), scored(0.0, a=0.0, b=None)],
        [scored(0.5, a=0.5, b=0.25), scored(0.5, a=0.5, b=0.75)],
    ]
    cut = Answer("", problem="no solution", truncated=True)
    statistics = group_statistics(scored_PG, [[Answer("B"), cut], [Answer("B"), Answer("B")]])
    # The standard deviation (divisor 1) of (1, 0) is 0.7071, of (0.5, 0.5) it is 0: mean 0.3536.
    # One of the two groups has zero variance.
    assert statistics.total.std == pytest.approx(2**-0.5 / 2)
    assert (statistics.total.n, statistics.total.mean, statistics.total.zero_variance) == (4, 0.5, 0.5)
    # b applies only to the second group, and (0.25, 0.75) has 0.3536.
    assert statistics.components["b"].n == 2
    assert statistics.components["b"].std == pytest.approx(0.5 / 2**0.5)
    assert statistics.components["b"].zero_variance == 0.0
    assert (statistics.unreadable, statistics.truncated, statistics.problems) == (0.25, 0.25, {"no solution": 1})


def test_the_log_omits_rewards_that_never_applied() -> None:
    log = group_statistics([[scored(1.0, a=1.0, b=None)] * 2], [[Answer("B")] * 2]).to_log()
    assert log == {
        "reward/unreadable": 0.0,
        "reward/truncated": 0.0,
        "reward/total/mean": 1.0,
        "reward/total/std": 0.0,
        "reward/total/zero_variance": 1.0,
        "reward/a/mean": 1.0,
        "reward/a/std": 0.0,
        "reward/a/zero_variance": 1.0,
    }


def test_the_standard_deviation_equals_trls_reward_std() -> None:
    torch = pytest.importorskip("torch")
    rewards_PG = np.random.default_rng(0).random((5, 4))
    statistics = group_statistics([[scored(v) for v in row] for row in rewards_PG], [[Answer("B")] * 4] * 5)
    assert statistics.total.std == pytest.approx(torch.tensor(rewards_PG).std(dim=1).mean().item())


def test_statistics_of_no_completions_or_of_unequal_shapes_are_rejected() -> None:
    for scored_PG, answers_PG in (([], []), ([[scored(1.0)]], [[Answer("B")] * 2])):
        with pytest.raises(ValueError):
            group_statistics(scored_PG, answers_PG)


def test_explanations_have_reasons_and_sum_to_the_total(tmp_path: Path) -> None:
    entry = write(tmp_path, 'def bonus(sample, answer):\n    """Says a side."""\n    return 1.0\n')
    table = reward_table(TASKS["mcq"], {}, [entry], tmp_path)
    wrong = Answer(
        "C" * 231, {"letter": "A", "text": "Normal", "explanation": "Right lower lobe opacity", "has_format": False}
    )
    explanations = explain(mcq.EXAMPLE, wrong, table)
    assert [line.why for line in explanations] == [
        "read A, reference B",
        "shared: right lower lobe; missed: consolidation in; extra: opacity",
        "used: lobe lower right; not used: consolidation",
        "not one reasoning block, one solution, nothing else",
        "231 characters > 220",
        "Says a side.",
    ]
    assert sum(line.points for line in explanations) == pytest.approx(table.score(mcq.EXAMPLE, wrong).total)
    assert str(explanations[0]) == "letter       0.00 x 1 = 0.000  read A, reference B"


def test_explanations_name_the_parse_problem_and_inapplicable_rewards(tmp_path: Path) -> None:
    unread = Answer("", problem="empty")
    table = reward_table(TASKS["mcq"], {}, [], tmp_path)
    whys = {line.reward: line.why for line in explain(mcq.EXAMPLE, unread, table)}
    assert whys["letter"] == "not readable: empty"
    assert whys["brevity"] == "0 characters <= 220; no answer could be read"
    closed = explain(vqa.CLOSED_EXAMPLE, Answer("No", {"text": "No"}), reward_table(TASKS["vqa"], {}, [], tmp_path))
    assert closed[0].why == 'read "no", reference "yes"'
    assert str(closed[1]) == "token_f1        - x 1 = 0.000  the question is closed"
