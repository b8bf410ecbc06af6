"""Detection from synthetic data to a trained run: the tiny model learns classes and boxes."""

import json
from pathlib import Path

import pytest

from tests.helpers.recipes import load_recipe
from toolkit.evaluation.predict import predict
from toolkit.pipeline import read_results, run_recipe
from toolkit.pipeline.run_results import RunResults
from toolkit.pipeline.stages import STAGES
from toolkit.runfolder import find_run

ROOT = Path(__file__).parent.parent
SHORTER = (
    "sft.max_steps=60",
    "data.synthetic.train=600",
    "data.synthetic.test=100",
    "evaluate.before=false",
    "evaluate.bootstrap=200",
    "export.to=['adapter']",
    "export.verify=2",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with SFT alone."""
    parent = tmp_path_factory.mktemp("detect")
    recipe = load_recipe(ROOT / "recipes" / "detect_tiny.toml", [*SHORTER, f"run.folder='{parent}'"])
    run_recipe(recipe, STAGES)
    return parent / "detect_tiny"


@pytest.fixture(scope="module")
def results(folder: Path) -> RunResults:
    return read_results(folder)


def test_the_tiny_model_learns_classes_and_boxes(results: RunResults) -> None:
    """The difference to the baseline is about 0.4 after 60 steps. Its interval must be above 0.1."""
    found = results.evaluations["sft"]
    for score in ("f1", "iou"):
        difference = found.scores[score].differences["baseline"]
        assert difference.clear
        assert (difference.difference.low or 0) > 0.1
    metrics = found.set_metrics
    assert {"mAP", "mAP_50", "f1_50", "AP_50 melanoma"} <= set(metrics)
    for name in ("mAP_50", "f1_50"):
        change = metrics[name].differences["baseline"]
        assert (change.low or 0) > 0
        assert change.n == 100


def test_prediction_names_the_classes_of_the_training_rows(folder: Path, results: RunResults) -> None:
    image = next((folder / "synthetic" / "images").iterdir())
    answer = predict(find_run(folder), "Which lesions are in this image?", [image])
    assert answer.problem or set(answer.values) == {"labels", "boxes", "unread"}
    prompts = json.loads((folder / "synthetic" / "train.json").read_text())
    assert len(prompts) == 600
