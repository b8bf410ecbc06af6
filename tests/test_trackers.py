"""What experiment trackers receive of a run: curves, the table of results, examples, and nothing that is private."""

import io
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.optional import defined
from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import load_recipe
from tests.helpers.training import small_recipe
from toolkit.errors import Interrupted, RecipeError
from toolkit.evaluation.stage_context import Context
from toolkit.evaluation.trackers import Table, Trackers, tracked_name
from toolkit.pipeline import RunResults, run_recipe
from toolkit.pipeline.existing_run import evaluate_again
from toolkit.pipeline.stages import STAGES
from toolkit.pipeline.tracked_results import RESULT_COLUMNS, results_table
from toolkit.recipe import Recipe
from toolkit.runfolder import read_lines
from toolkit.training.results import SftResult

EXAMPLES = 3


def tracked_recipe(folder: Path, tracker: str, examples: int = EXAMPLES) -> Recipe:
    """Return a recipe of one step of SFT with an evaluation before and after it."""
    run = {"report_to": (tracker,), "tracker_examples": examples}
    recipe = small_recipe(folder, {"run": run, "sft": {"max_steps": 1}}, name="tracked")
    return recipe.model_copy(update={"grpo": None, "export": None})


def interrupted(context: Context) -> SftResult:
    raise Interrupted(15, "no step had begun")


def run_with_a_break(recipe: Recipe) -> RunResults:
    """Stop the run after its first evaluation, and resume it."""
    with pytest.raises(Interrupted):
        run_recipe(recipe, replace(STAGES, sft=interrupted))
    return run_recipe(recipe, STAGES)


def rows_of(table: Table) -> list[Mapping[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResults, Any]:
    """A resumed run with TensorBoard, and a reader of its files."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    results = run_with_a_break(tracked_recipe(tmp_path_factory.mktemp("board"), "tensorboard"))
    events = EventAccumulator(str(results.folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return results, events


@pytest.mark.slow
def test_the_scores_of_each_evaluation_are_curves_with_their_intervals(board: tuple[RunResults, Any]) -> None:
    results, events = board
    primary = results.score
    for suffix, part in (("", "value"), ("/low", "low"), ("/high", "high")):
        found = {event.step: event.value for event in events.Scalars(f"evaluation/{primary}{suffix}")}
        expected = [getattr(one.primary.value, part) for one in results.evaluations.values()]
        assert found == pytest.approx(dict(enumerate(expected, 1)))


def test_the_table_has_every_score_with_interval_n_and_paired_differences(board: tuple[RunResults, Any]) -> None:
    results, _ = board
    table = rows_of(results_table(results.evaluations))
    assert [row["evaluation"] for row in table] == sorted(
        (row["evaluation"] for row in table), key=["before", "sft"].index
    )
    after = results.evaluations["sft"]
    (row,) = (
        one
        for one in table
        if (one["evaluation"], one["score"], one["compared with"]) == ("sft", results.score, "before")
    )
    difference = after.primary.differences["before"]
    estimate = after.primary.value
    assert (row["value"], row["low"], row["high"], row["n"]) == (estimate.value, estimate.low, estimate.high, 12)
    paired = difference.difference
    assert (row["difference"], row["difference low"], row["difference high"]) == (paired.value, paired.low, paired.high)
    assert row["p"] == difference.p_value
    baselines = [one for one in table if one["compared with"] == "majority baseline" and one["score"] == results.score]
    assert [one["difference"] for one in baselines] == [
        one.primary.differences["baseline"].difference.value for one in results.evaluations.values()
    ]


def text_of(events: Any, tag: str) -> str:
    """Return the last text of a tag."""
    return str(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode())


def test_tensorboard_has_the_table(board: tuple[RunResults, Any]) -> None:
    results, events = board
    lines = text_of(events, "evaluation/results").splitlines()
    assert lines[0] == f"| {' | '.join(RESULT_COLUMNS)} |"
    assert len(lines) == 2 + len(results_table(results.evaluations).rows)
    assert [event.step for event in events.Tensors("evaluation/results/text_summary")] == [1, 2]


def test_examples_have_their_image_and_hashed_ids(board: tuple[RunResults, Any]) -> None:
    results, events = board
    for name, one in results.evaluations.items():
        text = text_of(events, f"evaluation/examples/{name}")
        cells = [line.split(" | ") for line in text.splitlines()[2:]]
        assert len(cells) == EXAMPLES
        lines = read_lines(results.folder / one.predictions)
        ids = {line["id"] for line in lines}
        assert not ids & {cell.strip("| ") for row in cells for cell in row}
        assert all(row[0].startswith("| id-") for row in cells)
        completions = {line["completion"] for line in lines}
        assert all(row[3].strip() in {text.strip() for text in completions} for row in cells)
    images = events.Images("evaluation/examples/sft/1")
    pixels = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)))
    assert pixels.shape == (512, 512, 3)
    assert pixels.std() > 1


def test_without_the_key_trackers_get_no_image_and_no_text_of_a_row(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    results = run_recipe(tracked_recipe(tmp_path, "tensorboard", examples=0), STAGES)
    (prediction, *_) = read_lines(results.folder / results.evaluations["sft"].predictions)
    written = b"".join(file.read_bytes() for file in results.folder.rglob("events.*"))
    assert b"evaluation/results" in written
    assert b"evaluation/examples" not in written
    for key in ("id", "question"):
        assert str(prediction[key]).encode() not in written


@pytest.mark.slow
def test_wandb_gets_tables_and_images_and_a_resumed_run_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    results = run_with_a_break(tracked_recipe(tmp_path, "wandb"))
    files = sorted((results.folder / "wandb").rglob("run-*.wandb"))
    assert len({file.name for file in files}) == 1  # the id of the run
    deadline = time.monotonic() + 60  # a process of wandb's own writes the files
    while not any(b"train/loss" in file.read_bytes() for file in files):  # logged by the callback of transformers
        assert time.monotonic() < deadline
        time.sleep(1)
    tables = [json.loads(file.read_text()) for file in (results.folder / "wandb").rglob("*.table.json")]
    of_results = [table for table in tables if tuple(table["columns"]) == RESULT_COLUMNS]
    assert max(len(table["data"]) for table in of_results) == len(results_table(results.evaluations).rows)
    examples = [table for table in tables if "completion" in table["columns"]]
    assert [len(table["data"]) for table in examples] == [EXAMPLES] * 2
    prepared = [file.read_bytes() for file in (results.folder / "wandb").rglob("staging/*")]
    assert len({content for content in prepared if content.startswith(b"\x89PNG")}) == EXAMPLES
    assert any(b'"image-file"' in content for content in prepared)  # cells of a table refer to the images
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.mark.slow
def test_trackio_gets_tables_and_the_curves_of_training_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage  # type: ignore[import-not-found, unused-ignore]

    results = run_with_a_break(tracked_recipe(tmp_path, "trackio"))
    name = tracked_name(results.run)
    logs = SQLiteStorage.get_logs("toolkit", name)
    assert trackio.context_vars.current_run.get() is None
    keys = {key for line in logs for key in line}
    assert {"evaluation/results", "evaluation/examples/sft", f"evaluation/{results.score}", "train/loss"} <= keys
    table = defined(next((line["evaluation/results"] for line in reversed(logs) if "evaluation/results" in line), None))
    assert len(table["_value"]) == len(results_table(results.evaluations).rows)


@pytest.mark.slow
def test_another_evaluation_reaches_the_trackers_too(board: tuple[RunResults, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results, _ = board
    again = evaluate_again(results.folder, STAGES, name="later")
    events = EventAccumulator(str(results.folder / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars(f"evaluation/{results.score}")}
    assert found[3] == pytest.approx(again.evaluations["later"].primary.value.value)


class Failing:
    """A tracker whose server is away."""

    def __init__(self) -> None:
        self.calls = 0

    def log_figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.calls += 1
        raise ConnectionError("no route to https://me:0123456789abcdef0123456789abcdef@server")

    def log_table(self, name: str, step: int, table: Table) -> None:
        self.calls += 1

    def close(self) -> None:
        self.calls += 1


class Recording(Failing):
    """A tracker that keeps figures."""

    def log_figures(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.calls += 1


def test_a_failing_tracker_is_reported_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    failing, working = Failing(), Recording()
    trackers = Trackers({"wandb": failing, "tensorboard": working})
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            trackers.figures("evaluation", step, {"accuracy": 0.5})
        trackers.table("evaluation/results", 3, Table(("a",), ((1,),)))
        trackers.close()
    (warning,) = warnings_in(caplog)
    assert (warning.code, warning.place) == ("tracker.failed", "run.report_to")
    assert "ConnectionError" in str(warning.value)
    assert "0123456789abcdef" not in str(warning)
    assert (failing.calls, working.calls) == (1, 5)
    assert not trackers


def test_examples_without_a_tracker_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        '[run]\nname = "r"\ntracker_examples = 2\n[sft]\n[evaluate]\n[data]\ntask = "mcq"\n'
        '[data.synthetic]\nkind = "chest"\n'
    )
    with raises(RecipeError, "recipe.tracker_examples_unused") as caught:
        load_recipe(file)
    assert caught.problem.value == 2
