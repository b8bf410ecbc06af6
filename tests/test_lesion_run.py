"""Lesions from synthetic data to a trained run: every stage, score tables, prediction, hand-computed rewards."""

import json
from pathlib import Path

import pytest

from tests.helpers.training import Tables, small_recipe
from toolkit.evaluation.predict import predict
from toolkit.evaluation.results import EvaluationResult
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, find_run, read_lines
from toolkit.training.completions_file import score_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a recipe whose run trained two steps on crops of synthetic lesions."""
    folder = tmp_path_factory.mktemp("lesions")
    tables: Tables = {
        "data": {
            "task": "lesion",
            "synthetic": {"kind": "lesion", "train": 40, "test": 20, "size": 96},
            "lesion": {"answer": ("diagnosis", "location", "bbox", "polygon"), "crop": 0.7},
            "sampling": "balanced",
        },
        "model": {"tuning": "full", "max_tokens": 512},
        "prompt": {"instruction": "Answer with diagnosis, location, bbox and polygon."},
        "sft": {"max_steps": 2},
        "export": {"to": ("merged",), "verify": 2},
    }
    recipe = small_recipe(folder, tables, "lesions").model_copy(update={"grpo": None})
    run_recipe(recipe, STAGES)
    return recipe


def test_every_score_gets_a_table_beside_its_baseline(lesions: Recipe) -> None:
    run = RunFolder(lesions.run_folder)
    results = read_results(run.path)
    assert list(results.tables) == ["accuracy", "place", "box_iou", "mask_iou"]
    for rows in results.tables.values():
        assert [row.label for row in rows] == ["majority baseline", "before", "after SFT"]
        assert (rows[0].estimate.value or 0) > 0
    record = run.result("evaluate-sft", EvaluationResult)
    assert record.summary.overall.labels is not None
    assert set(record.summary.overall.labels.classes) >= {"nv", "mel"}
    assert {"sex", "age_band", "site", "source"} >= set(record.summary.by) >= {"sex", "age_band"}
    assert (run.path / "stages/evaluate-sft/confusion.png").is_file()
    assert "balanced sampling: " in run.log_file.read_text()


def test_synthetic_lesions_are_in_one_split_and_prepared_like_a_download(lesions: Recipe) -> None:
    folder = lesions.run_folder / "synthetic"
    rows = {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test")}
    assert sum(map(len, rows.values())) == 60
    assert not {row["lesion_id"] for row in rows["train"]} & {row["lesion_id"] for row in rows["test"]}
    assert all(row["mask_available"] and row["boxes"] for part in rows.values() for row in part)
    assert (folder / "sheet.png").is_file()


def test_prediction_accepts_an_own_image_and_an_own_question(lesions: Recipe) -> None:
    image = next((lesions.run_folder / "synthetic" / "HAM10000_images_part_1").iterdir())
    answer = predict(find_run(lesions.run_folder), "Is this benign?", [image])
    assert answer.text
    assert answer.problem or set(answer.values) == {"diagnosis", "lesions", "unread"}


def test_given_answers_are_scored_with_their_reasons(lesions: Recipe, tmp_path: Path) -> None:
    (row, *_) = json.loads((lesions.run_folder / "synthetic" / "test.json").read_text())
    x1, y1, x2, y2 = row["bbox"]
    # The tiny model's coordinates run from 0 to 100.
    box = [
        round(100 * edge / side) for edge, side in zip((x1, y1, x2, y2), (row["width"], row["height"]) * 2, strict=True)
    ]
    text = f"<diagnosis>{row['dx']}</diagnosis> <location>upper-left</location> <bbox>{box}</bbox>"
    file = tmp_path / "given.jsonl"
    file.write_text(json.dumps({"sample": row, "completion": text}) + "\n")
    (scored,) = score_file(lesions, file)
    found = {one.reward: one.value or 0.0 for one in scored.explanations}
    assert found["diagnosis"] == 1
    assert (found["mask_iou"] or 0) > 0.4
    predictions = lesions.run_folder / "stages/evaluate-sft/predictions.jsonl"
    assert len(score_file(lesions, predictions)) == len(read_lines(predictions)) > 0
