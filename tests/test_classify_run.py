"""Classification from images to a trained run: it learns, has probabilities, thresholds, a card and a prediction."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.recipes import load_recipe
from tests.helpers.training import Tables, small_recipe
from toolkit.data.sample import Answer
from toolkit.evaluation.predict import predict
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.runfolder import find_run, read_lines
from toolkit.synthetic.tissue import TISSUES, draw_tile
from toolkit.training.completions_file import score_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SHORTER = (
    "sft.max_steps=40",
    "data.synthetic.train=270",
    "data.synthetic.validation=0",
    "data.synthetic.test=90",
    "evaluate.before=false",
    "evaluate.max_completion_tokens=12",
    "export.to=['adapter']",
)


def test_the_tiny_model_learns_to_classify(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "classify_tiny.toml", [*SHORTER, f"run.folder='{tmp_path}'"])
    run_recipe(recipe, STAGES)
    result = read_results(tmp_path / "classify_tiny").evaluations["sft"]
    difference = result.primary.differences["baseline"]
    assert difference.clear
    assert (difference.difference.low or 0) > 0.1
    assert result.probabilities is not None
    metrics = result.probabilities.metrics
    assert (metrics.auroc.low or 0) > 0.7
    assert metrics.prevalence == pytest.approx(1 / 9)
    assert [(one.positives, one.negatives) for one in metrics.classes.values()] == [(10, 80)] * 9
    assert metrics.thresholds_from == "test"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Return a recipe whose run trained two steps, with a validation split."""
    synthetic = {"kind": "tissue", "train": 36, "validation": 18, "test": 18, "size": 64}
    tables: Tables = {
        "data": {"task": "classify", "synthetic": synthetic},
        "model": {"max_tokens": 320},
        "sft": {"max_steps": 2},
        "export": {"to": ("merged",), "verify": 2},
    }
    folder = tmp_path_factory.mktemp("tiles")
    recipe = small_recipe(folder, tables, "tiles").model_copy(update={"grpo": None})
    run_recipe(recipe, STAGES)
    return recipe


def test_thresholds_are_chosen_on_the_validation_split(tiles: Recipe) -> None:
    results = read_results(tiles.run_folder)
    found = results.evaluations["sft"].probabilities
    assert found is not None
    assert (found.metrics.thresholds_from, found.metrics.n) == ("validation", 18)
    assert set(found.differences) == {"before"}
    assert set(found.differences["before"]) == {"macro AUROC", "macro average precision"}
    folder = tiles.run_folder / "stages" / "evaluate-sft"
    chosen = {line["id"] for line in read_lines(folder / "predictions.validation.jsonl")}
    assert chosen == set(json.loads((tiles.run_folder / "synthetic" / "validation.json").read_text()))


def test_probabilities_of_each_answer_are_saved_and_sum_to_1(tiles: Recipe) -> None:
    lines = read_lines(tiles.run_folder / "stages" / "evaluate-sft" / "predictions.jsonl")
    assert {tuple(line["probabilities"]) for line in lines} == {tuple(sorted(TISSUES))}
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in lines)


def test_the_model_card_has_the_table_of_the_classes(tiles: Recipe) -> None:
    card = (tiles.run_folder / "stages" / "export" / "merged" / "README.md").read_text(encoding="utf-8")
    assert "| class | positive | negative | AUROC |" in card
    assert "| MUC | 2 | 16 |" in card
    assert "Thresholds were chosen on the validation split." in card


def test_a_prediction_has_the_probability_of_every_class(tiles: Recipe) -> None:
    image = next((tiles.run_folder / "synthetic" / "images").iterdir())
    answer: Answer = predict(find_run(tiles.run_folder), "Which tissue?", [image])
    assert answer.probabilities is not None
    assert sorted(answer.probabilities) == sorted(TISSUES)
    assert score_file(tiles, tiles.run_folder / "stages" / "evaluate-sft" / "predictions.jsonl")


def test_probabilities_can_be_switched_off(tiles: Recipe) -> None:
    off = tiles.evaluation.model_copy(update={"probabilities": False, "before": False})
    run = tiles.run.model_copy(update={"name": "off"})
    recipe = tiles.model_copy(update={"evaluate": off, "run": run, "export": None})
    run_recipe(recipe, STAGES)
    result = read_results(recipe.run_folder).evaluations["sft"]
    assert result.probabilities is None
    folder = recipe.run_folder / "stages" / "evaluate-sft"
    assert not list(folder.glob("predictions.validation*"))
    assert all("probabilities" not in line for line in read_lines(folder / "predictions.jsonl"))


def guide(name: str) -> str:
    """Return the file NAME of the guide."""
    text = (ROOT / "docs" / "guides" / "classify.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- file: {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    return str(found)


def test_a_folder_with_one_sub_folder_per_class_needs_fifteen_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's recipe, with fewer steps, gives a confusion matrix, AUROC and merged weights."""
    monkeypatch.chdir(tmp_path)
    for number in range(24):
        code = ("ADI", "MUC", "LYM")[number % 3]
        folder = tmp_path / "tiles" / code
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), draw_tile(code, 64, np.random.default_rng(number)))
    text = guide("folder.toml")
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    (tmp_path / "folder.toml").write_text(text, encoding="utf-8")
    few = ["sft.max_steps=2", "sft.gradient_checkpointing=false", "evaluate.max_completion_tokens=8", "export.verify=2"]
    results = run_recipe(load_recipe("folder.toml", [*few, "images.max_side=112"]), STAGES)
    found = results.evaluations["sft"]
    assert found.probabilities is not None
    assert sorted(found.probabilities.metrics.classes) == ["ADI", "LYM", "MUC"]
    assert found.probabilities.metrics.auroc.value is not None
    run = find_run("runs/tissue").path
    assert (run / "stages" / "evaluate-sft" / "confusion.png").is_file()
    assert (run / "stages" / "export" / "merged" / "model.safetensors").is_file()


def test_several_labels_have_a_probability_each(tmp_path: Path) -> None:
    """Each decision continues the answers to the classes before it, so the probabilities do not sum to 1."""
    rows = {}
    for number in range(24):
        codes = [code for bit, code in enumerate(("LYM", "MUC")) if number >> bit & 1]
        pixels = draw_tile(codes[0] if codes else "BACK", 64, np.random.default_rng(number))
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        rows[f"r{number}"] = {"image": f"{number}.png", "label": "|".join(codes) or "No Finding"}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    tables: Tables = {
        "data": {"task": "classify", "train": str(tmp_path / "rows.json"), "synthetic": None, "split": {"test": 0.4}},
        "sft": {"max_steps": 2},
        "evaluate": {"max_completion_tokens": 24},
    }
    recipe = small_recipe(tmp_path, tables, "several").model_copy(update={"grpo": None})
    run_recipe(recipe, STAGES)
    result = read_results(recipe.run_folder).evaluations["sft"]
    assert result.probabilities is not None
    assert list(result.probabilities.metrics.classes) == ["LYM", "MUC"]
    assert set(result.set_metrics) == {"micro F1", "macro F1"}
    lines = read_lines(recipe.run_folder / "stages" / "evaluate-sft" / "predictions.jsonl")
    assert all(0 < value < 1 for line in lines for value in line["probabilities"].values())
    assert any(sum(line["probabilities"].values()) != pytest.approx(1) for line in lines)
