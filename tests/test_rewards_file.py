"""`toolkit reward test`: completions from a file, scored and explained."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import load_recipe
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import Recipe
from toolkit.training.completions_file import MAX_DEPTH, MAX_SHOWN, score_file

ROW = {
    "question": "What is the main finding?",
    "options": ["A. Normal", "B. Pneumonia"],
    "correct_answer": "B",
    "correct_answer_explanation": "Consolidation in the right lower lobe",
    "ImagePath": ["image.png"],
    "Findings": "Right lower lobe consolidation.",
    "Impression": "Pneumonia.",
}
RIGHT = (
    "<start_working_out>\nConsolidation in the right lower lobe\n<end_working_out>\n"
    "<SOLUTION>\nB - Pneumonia\n</SOLUTION>"
)


def recipe(folder: Path, more: str = "") -> Recipe:
    (folder / "train.json").write_text(json.dumps({"q1": ROW, "both": ROW, "bad": {**ROW, "correct_answer": "Q"}}))
    (folder / "test.json").write_text(json.dumps({"q9": {**ROW, "correct_answer": "A"}, "both": ROW}))
    text = '[run]\nname = "try"\n[data]\ntask = "mcq"\ntrain = "train.json"\ntest = "test.json"\nmax_dropped = 1.0\n'
    (folder / "recipe.toml").write_text(f"{text}[grpo]\n{more}")
    return load_recipe(folder / "recipe.toml")


def lines(folder: Path, *content: Any) -> Path:
    file = folder / "completions.jsonl"
    file.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in content))
    return file


def test_the_sft_target_has_every_reward_in_full(tmp_path: Path) -> None:
    # 1.0 + 0.6 + 0.2 + 0.1 + 0.1; the report's words are right lower lobe consolidation (Pneumonia is an option).
    (found,) = score_file(recipe(tmp_path), lines(tmp_path, {"id": "q1", "completion": RIGHT}))
    assert found.total == pytest.approx(2.0)
    assert (found.place, found.id, found.problem) == ("line 1", "q1", None)
    assert [one.reward for one in found.explanations] == ["letter", "explanation", "evidence", "format", "brevity"]


def test_rows_are_named_by_split_or_are_in_the_line_and_keep_their_order(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        {"id": "q9", "completion": RIGHT},
        "",
        {"id": "both", "split": "test", "completion": "B"},
        {"sample": ROW, "completion": "B", "id": "mine"},
        {**ROW, "completion": ""},
    )
    found = score_file(recipe(tmp_path), file)
    assert [(one.place, one.id) for one in found] == [
        ("line 1", "q9"),
        ("line 3", "both"),
        ("line 4", "mine"),
        ("line 5", "line 5"),
    ]
    letters = [one.explanations[0].value for one in found]
    assert letters == [0.0, 1.0, 1.0, 0.0]
    assert found[0].explanations[0].why == "read B, reference A"
    assert found[3].problem is not None
    assert found[3].total == 0.0


def test_rows_in_the_lines_need_no_data(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    (tmp_path / "train.json").unlink()
    assert score_file(wanted, lines(tmp_path, {"sample": ROW, "completion": "B"}))[0].explanations[0].value == 1.0


def test_all_invalid_lines_are_listed_with_their_places(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        {"id": "q1", "completion": "B"},
        "{broken",
        {"id": "q1"},
        {"id": "q777", "completion": "B"},
        {"id": "both", "completion": "B"},
        {"id": "bad", "completion": "B"},
        {"id": "q1", "split": "test", "completion": "B"},
        {"sample": {"question": "?"}, "completion": "B"},
        {"sample": 3, "completion": "B"},
    )
    with pytest.raises(DataError) as caught:
        score_file(recipe(tmp_path), file)
    assert (caught.value.code, caught.value.place) == ("rewards.lines_invalid", str(file))
    found = {problem.place: problem for problem in caught.value.problems}
    assert {place: problem.code for place, problem in found.items()} == {
        "line 2": "rewards.line_not_json",
        "line 3": "rewards.completion_missing",
        "line 4": "rewards.id_unknown",
        "line 5": "rewards.id_ambiguous",
        "line 6": "rewards.row_invalid",
        "line 7": "rewards.id_unknown",
        "line 8": "rewards.row_invalid",
        "line 9": "rewards.sample_not_object",
    }
    values = {place: problem.value for place, problem in found.items()}
    assert [str(values[line]) for line in ("line 3", "line 4", "line 6", "line 7", "line 9")] == [
        "object with 1 key",
        "text of 4 characters",
        "Q",
        "text of 2 characters",
        "number of 1 characters",
    ]
    assert values["line 8"] == {}
    assert "split test" in found["line 7"].rule
    assert "train, test" in found["line 5"].remedy


def test_an_invalid_row_in_a_line_is_shown_with_the_value_that_makes_it_invalid(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    with pytest.raises(DataError) as caught:
        score_file(wanted, lines(tmp_path, {"sample": {**ROW, "correct_answer": "Q"}, "completion": "B"}))
    assert [(one.place, one.value) for one in caught.value.problems] == [("line 1", "Q")]
    assert caught.value.problems[0].remedy


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    with raises(DataError, "rewards.completions_empty"):
        score_file(recipe(tmp_path), lines(tmp_path, ""))
    with raises(DataError, "rewards.completions_unreadable") as caught:
        score_file(recipe(tmp_path), tmp_path / "nothing.jsonl")
    assert caught.problem.place == str(tmp_path / "nothing.jsonl")
    assert caught.problem.value == "No such file or directory"


def test_a_custom_reward_is_scored_and_explained(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text('def side(sample, answer):\n    """Names a side."""\n    return 1.0\n')
    wanted = recipe(tmp_path, '[rewards]\ncustom = ["mine.py:side"]\nside = 0.5\n')
    (found,) = score_file(wanted, lines(tmp_path, {"id": "q1", "completion": RIGHT}))
    assert found.total == pytest.approx(2.5)
    assert found.explanations[-1].why == "Names a side."
    (tmp_path / "mine.py").write_text("def sides(sample, answer): return 1.0\n")
    with raises(RecipeError, "rewards.function_missing"):
        score_file(wanted, lines(tmp_path, {"id": "q1", "completion": RIGHT}))


def test_real_answers_have_full_rewards_if_they_are_their_own_reference(shared_data: Path, tmp_path: Path) -> None:
    rows = json.loads((shared_data / "cxr/vqa_rad/testset.json").read_text())
    text = '[run]\nname = "try"\n[data]\ntask = "vqa"\ntrain = "unused.json"\n[grpo]\n'
    (tmp_path / "recipe.toml").write_text(text)
    file = lines(tmp_path, *({"sample": row, "completion": str(row["answer"])} for row in rows))
    found = score_file(load_recipe(tmp_path / "recipe.toml"), file)
    assert len(found) == 451
    # 1 for the answer and 0.1 for the format, whether the question is open or closed.
    short = [one.answer.text for one in found if one.total != pytest.approx(1.1)]
    assert short == []


def test_a_line_that_is_nested_too_deeply_is_an_error(tmp_path: Path) -> None:
    row = json.dumps({"id": "q1", "completion": RIGHT})
    for depth in (MAX_DEPTH + 1, 1_000, 100_000):
        inner = "[" * depth + "]" * depth
        file = lines(tmp_path, inner, "[" * depth, f'{{"completion": "B", "sample": {inner}}}', row)
        with pytest.raises(DataError) as caught:
            score_file(recipe(tmp_path), file)
        found = {problem.place: problem.code for problem in caught.value.problems}
        assert found.pop("line 2") in ("rewards.line_not_json", "rewards.line_nested_too_deeply")
        assert found == {f"line {number}": "rewards.line_nested_too_deeply" for number in (1, 3)}
    score_file(recipe(tmp_path), lines(tmp_path, f'{row[:-1]}, "more": {"[" * 60}{"]" * 60}}}'))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f'{{"completion": "B", "id": {"9" * 5_000}}}', "rewards.line_not_json"),
        ('{"completion": "B", "completion": "A", "id": "q1"}', "rewards.key_repeated"),
        ('{"completion": "B", "id": "q1", "split": "\\ud800"}', "rewards.split_unknown"),
        ('{"completion": "B", "id": "q1", "split": ["test"]}', "rewards.split_unknown"),
        ('{"completion": "B", "id": "\\ud800"}', "rewards.id_unknown"),
        ('{"completion": "B", "id": "a\\u0000"}', "rewards.id_unknown"),
        (json.dumps({"completion": "B", "sample": {**ROW, "options": 10**400}}), "rewards.row_invalid"),
        (json.dumps({"completion": "B", "sample": {**ROW, "correct_answer": -(10**400)}}), "rewards.row_invalid"),
    ],
)
def test_extreme_values_in_a_line_are_errors_with_a_remedy(tmp_path: Path, line: str, code: str) -> None:
    with raises(DataError, code) as caught:
        score_file(recipe(tmp_path), lines(tmp_path, line))
    assert caught.problem.remedy
    assert len(str(caught.error)) < 600


def test_a_completion_of_any_characters_is_scored(tmp_path: Path) -> None:
    texts = ["\ud800", "a\0b", "[" * 100_000, "9" * 5_000]
    found = score_file(recipe(tmp_path), lines(tmp_path, *({"id": "q1", "completion": text} for text in texts)))
    assert [one.answer.text for one in found] == texts


def test_the_completions_must_be_in_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with raises(DataError, "rewards.completions_not_a_file"):
            score_file(recipe(tmp_path), file)
    for name in ("a" * 300, "a\0b"):
        with raises(DataError, "rewards.completions_unreadable"):
            score_file(recipe(tmp_path), tmp_path / name)


def test_a_message_lists_the_first_invalid_lines_and_counts_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        score_file(recipe(tmp_path), lines(tmp_path, *["null"] * 5_000))
    assert len(caught.value.problems) == 5_000
    assert f"and {5_000 - MAX_SHOWN:,} more" in str(caught.value)
