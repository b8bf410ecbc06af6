"""GUI steps from a CSV to a trained run: every stage, with and without images, prediction, hand-computed rewards."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises
from tests.helpers.stepping import task_rows, write_csv
from tests.helpers.training import small_recipe
from toolkit.errors import DataError
from toolkit.evaluation.predict import predict
from toolkit.evaluation.results import EvaluationResult
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, find_run, read_lines
from toolkit.training.completions_file import score_file

pytestmark = pytest.mark.slow


def trained(folder: Path, sections: tuple[str, ...], **more: Any) -> Recipe:
    """Return a recipe whose run trained two steps of SFT and GRPO on seven tasks."""
    rows = [{**one, "Application": f"viewer {task % 2}"} for task in range(1, 11) for one in task_rows(task)]
    write_csv(folder, rows)
    tables = {
        "data": {
            "task": "steps",
            "synthetic": None,
            "train": str(folder / "task_results.csv"),
            "image_root": folder / "images",
            "split": {"test": 0.3, "validation": 0},
            "steps": {"sections": sections, "answer": ("predicted",), "drop_memory": 0.2, "corrupt_memory": 0.2},
        },
        "model": {"tuning": "full", "max_tokens": 640},
        "prompt": {"instruction": "Answer with JSON: Predicted, predicted_action, action, target, coords."},
        "sft": {"max_steps": 2, "batch_size": 2, "accumulation": 1},
        "grpo": {"max_steps": 2, "max_completion_tokens": 24, "generations": 2},
        "evaluate": {"max_completion_tokens": 24, "batch_size": 8},
        **more,
    }
    recipe = small_recipe(folder, tables, "steps")
    run_recipe(recipe, STAGES)
    return recipe


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return trained(tmp_path_factory.mktemp("steps"), ("goal", "image", "short_term", "long_term"))


@pytest.mark.slow
def test_every_score_gets_a_table_beside_its_baseline(steps: Recipe) -> None:
    run = RunFolder(steps.run_folder)
    results = read_results(run.path)
    # The recipe's answers have no memory.
    parts = [f"{score} (reference agent memory)" for score in ("action", "target", "grounding")]
    assert list(results.tables) == [
        *("step (reference agent memory)", "step (own agent memory)", "whole tasks (own agent memory)"),
        *parts,
    ]
    for rows in results.tables.values():
        baselines = ["majority baseline", "repeat-last baseline"]
        assert [row.label for row in rows] == [*baselines, "before", "after SFT", "after GRPO"]
    # Four equally frequent steps a task: the most frequent one is right for a quarter of them.
    assert results.rows[0].estimate.value == 0.25
    summary = run.result("evaluate-grpo", EvaluationResult).summary
    assert list(summary.by["action"]) == ["CLICK", "COMPLETE", "SCROLL", "TEXT"]
    assert set(summary.by["application"]) <= {"viewer 0", "viewer 1"}
    assert set(summary.confusion.labels) == {"CLICK", "COMPLETE", "SCROLL", "TEXT"}
    assert summary.overall.n == 12


def test_predictions_have_the_task_and_the_reference(steps: Recipe) -> None:
    lines = read_lines(steps.run_folder / "stages/evaluate-sft/predictions.jsonl")
    assert {line["group"] for line in lines} <= {str(task) for task in range(1, 11)}
    assert all(line["reference"]["action"] and line["question"].startswith("Load scan") for line in lines)


def test_prediction_accepts_an_own_screenshot(steps: Recipe) -> None:
    screen = next((Path(steps.dataset.train or "").parent / "images").iterdir())
    answer = predict(find_run(steps.run_folder), "Load the MRI scan", [screen])
    assert answer.problem or answer.values["action"]
    with raises(DataError, "predict.question_invalid"):
        predict(find_run(steps.run_folder), "Load the MRI scan", [screen, screen])


def test_given_answers_are_scored_with_their_reasons(steps: Recipe, tmp_path: Path) -> None:
    # The second row is the second step of task 1. The tiny model's coordinates run from 0 to 100.
    predicted = {"action": "SCROLL", "target": "axial slice", "coords": [50, 50]}
    by_id = {"id": "1", "completion": json.dumps({"Predicted": {"predicted_action": predicted}})}
    row = {**task_rows(1)[1], "width": 400, "height": 300}
    inline = {"sample": row, "completion": "SCROLL"}
    file = tmp_path / "given.jsonl"
    file.write_text(json.dumps(by_id) + "\n" + json.dumps(inline) + "\n")
    right, wrong = score_file(steps, file)
    found = {one.reward: one.value for one in right.explanations}
    assert found == {"action": 1, "target": 1, "grounding": 1, "memory": None, "json": 1}
    assert wrong.total == 0
    predictions = steps.run_folder / "stages/evaluate-sft/predictions.jsonl"
    assert len(score_file(steps, predictions)) == len(read_lines(predictions)) == 12


@pytest.mark.slow
def test_rows_without_an_image_are_trained_and_evaluated(tmp_path: Path) -> None:
    recipe = trained(tmp_path, ("goal", "long_term"), export={"to": ("merged",), "verify": 2})
    assert read_results(recipe.run_folder).rows[-1].label == "after GRPO"
