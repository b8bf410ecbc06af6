"""Predictions over files and folders: prompts as in training, tables, resume, unreadable images and existing files."""

import csv
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises, warnings_in
from tests.helpers.rolling import rolling_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.errors import DataError, ImageError, Interrupted, RunError
from toolkit.evaluation.predict import predict
from toolkit.evaluation.predict_rows import RowPredictions, RowsRequest, predict_rows
from toolkit.evaluation.unlabelled import Constants
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.models.hf import HfBackend
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, StopRequest, find_run

SIDE = Constants("Which side is affected?", ("A. left", "B. right", "C. both"))


class Answering(HfBackend):
    """Answers B, or C for a prompt with ``word``. It keeps the prompts and the sizes of their images."""

    def __init__(self, word: str = "zone") -> None:
        self.word = word
        self.prompts: list[str] = []
        self.images: list[tuple[int, int]] = []

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        return self.load_without_model(recipe)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        texts = [str(row.messages[0]["content"][-1]["text"]) for row in rows]
        self.prompts += texts
        self.images += [image.size for row in rows for image in row.images]
        letters = ["C" if self.word in text else "B" for text in texts]
        return [[Completion(f"<SOLUTION>{letter}</SOLUTION>", 1, truncated=letter == "C")] for letter in letters]


def make_run(folder: Path, **tables: Any) -> RunFolder:
    recipe = small_recipe(folder, {"sft": {"max_steps": 1}, **tables})
    with context_of(recipe):
        pass
    return find_run(recipe.run_folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that has trained nothing, with 12 test questions about 6 images."""
    return make_run(tmp_path_factory.mktemp("run"))


def rows_of(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "synthetic" / "test.json").read_text())
    return found


def predicted(run: RunFolder, source: Path, out: Path, backend: HfBackend | None = None, **more: Any) -> RowPredictions:
    with StopRequest() as stop:
        return predict_rows(run, RowsRequest(source, out, **more), stop, backend=backend or Answering())


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_table_has_a_line_for_each_row_in_order(run: RunFolder, tmp_path: Path) -> None:
    source = run.path / "synthetic" / "test.json"
    found = predicted(run, source, tmp_path / "p.csv")
    predicted(run, source, tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows, cells = rows_of(run), read_csv(tmp_path / "p.csv")
    assert [line["id"] for line in lines] == [line["id"] for line in cells] == list(rows)
    assert found.rows == 12
    assert found.truncated == sum(line["answer"]["letter"] == "C" for line in lines) > 0
    for line, cell in zip(lines, cells, strict=True):
        assert (cell["completion"], cell["answer_letter"]) == (line["completion"], line["answer"]["letter"])
        assert cell["image"] == line["image"]
        assert Path(line["image"]).is_file()
        assert cell["truncated"] == json.dumps(line["truncated"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.jsonl"]


def test_prompts_are_those_of_one_question_and_do_not_depend_on_references(run: RunFolder, tmp_path: Path) -> None:
    rows, images = rows_of(run), run.path / "synthetic"
    labelled, unlabelled = Answering(), Answering()
    predicted(run, images / "test.json", tmp_path / "a.csv", labelled)
    kept = ("question", "options", "ImagePath", "Indication")
    bare = {name: {key: row[key] for key in kept if key in row} for name, row in rows.items()}
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    predicted(run, tmp_path / "bare.json", tmp_path / "b.csv", unlabelled, image_root=images)
    assert unlabelled.prompts == labelled.prompts
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert not any(str(row["correct_answer_explanation"]) in "".join(labelled.prompts) for row in rows.values())


def test_a_folder_of_images_has_one_question(run: RunFolder, tmp_path: Path) -> None:
    folder, backend = tmp_path / "images", Answering()
    (folder / "inner").mkdir(parents=True)
    for number, file in enumerate(sorted((run.path / "synthetic" / "images").glob("*.png"))[:3]):
        (folder / ("inner" if number else "") / file.name).write_bytes(file.read_bytes())
    (folder / "notes.md").touch()
    (folder / ".hidden.png").touch()
    found = predicted(run, folder, tmp_path / "p.csv", backend, constants=SIDE)
    lines = read_csv(tmp_path / "p.csv")
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert [Path(line["image"]) for line in lines] == [folder / line["id"] for line in lines]
    assert (found.rows, [(one.code, one.count) for one in found.dropped]) == (3, [("predict.file_not_image", 1)])
    assert len(backend.images) == 3
    for text in ("Which side is affected?", "A. left", "C. both"):
        assert all(text in prompt for prompt in backend.prompts)
    with raises(DataError, "predict.question_missing"):
        predicted(run, folder, tmp_path / "q.csv")


def test_a_question_beside_that_of_the_rows_is_an_error(run: RunFolder, tmp_path: Path) -> None:
    with raises(DataError, "predict.value_given_twice") as caught:
        predicted(run, run.path / "synthetic" / "test.json", tmp_path / "p.csv", constants=SIDE)
    assert caught.problem.value == "question"


def test_an_interrupted_prediction_resumes_after_its_last_batch(run: RunFolder, tmp_path: Path) -> None:
    source, first, second = run.path / "synthetic" / "test.json", Answering(), Answering()
    predicted(run, source, tmp_path / "whole.csv")
    request = RowsRequest(source, tmp_path / "p.csv")

    def press(what: str, done: int, total: int, note: str = "") -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with StopRequest() as stop, raises(Interrupted, "run.interrupted"):
        predict_rows(run, request, stop, press, backend=first)
    assert not (tmp_path / "p.csv").exists()
    (partial,) = tmp_path.glob(".p.csv.*.partial")
    with partial.open("ab") as stream:
        stream.write(b'{"id": "cut')  # as a killed process leaves it
    predicted(run, source, tmp_path / "p.csv", second)
    assert (len(first.prompts), len(second.prompts)) == (6, 6)
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "whole.csv"]


def test_saved_predictions_of_other_rows_or_questions_are_not_used(run: RunFolder, tmp_path: Path) -> None:
    folder = run.path / "synthetic" / "images"

    def press(what: str, done: int, total: int, note: str = "") -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with StopRequest() as stop, raises(Interrupted, "run.interrupted"):
        predict_rows(run, RowsRequest(folder, tmp_path / "p.csv", constants=SIDE), stop, press, backend=Answering())
    backend = Answering()
    other = Constants("Which lung?", SIDE.options)
    found = predicted(run, folder, tmp_path / "p.csv", backend, constants=other)
    assert len(backend.prompts) == found.rows
    assert all("Which lung?" in prompt for prompt in backend.prompts)


def test_an_existing_file_is_kept(run: RunFolder, tmp_path: Path) -> None:
    source, out = run.path / "synthetic" / "test.json", tmp_path / "p.csv"
    out.write_text("mine")
    with raises(RunError, "output.file_exists"):
        predicted(run, source, out)
    predicted(run, source, out, force=True)
    assert (tmp_path / "p.csv.old-1").read_text() == "mine"
    with raises(DataError, "predict.out_suffix_unknown"):
        predicted(run, source, tmp_path / "p.xlsx")
    with raises(RunError, "output.folder_not_writable"):
        predicted(run, source, out / "inside" / "p.csv")
    own = tmp_path / "rows.jsonl"
    own.write_text('{"question": "Is it normal?"}\n')
    with raises(DataError, "predict.out_is_source"):
        predicted(run, own, own, force=True)
    assert own.is_file()


@pytest.mark.parametrize("unreadable", ["stop", "skip", "placeholder"])
def test_unreadable_images_follow_the_recipe(tmp_path: Path, unreadable: str, caplog: pytest.LogCaptureFixture) -> None:
    run, folder = make_run(tmp_path, images={"unreadable": unreadable}), tmp_path / "images"
    folder.mkdir()
    for file in sorted((run.path / "synthetic" / "images").glob("*.png"))[:2]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.png").write_text("no image")
    backend = Answering()
    if unreadable == "stop":
        with raises(ImageError, "images.unusable") as caught:
            predicted(run, folder, tmp_path / "p.csv", backend, constants=SIDE)
        assert "broken.png" in caught.problem.rule
        assert not backend.prompts
        return
    found = predicted(run, folder, tmp_path / "p.csv", backend, constants=SIDE)
    lines = {line["id"]: line for line in read_csv(tmp_path / "p.csv")}
    assert len(lines) == 3
    if unreadable == "skip":
        assert found.problems == {"an image cannot be read": 1}
        assert (lines["broken.png"]["completion"], len(backend.prompts)) == ("", 2)
    else:
        assert (found.problems, len(backend.prompts)) == ({}, 3)
        assert "images.placeholders_used" in [one.code for one in warnings_in(caplog)]


def test_a_task_with_its_own_question_needs_only_images(tmp_path: Path) -> None:
    data = {"task": "lesion", "synthetic": {"kind": "lesion", "train": 8, "test": 4, "size": 128}}
    run = make_run(tmp_path, data=data)
    synthetic, backend = run.path / "synthetic", Answering()
    found = predicted(run, synthetic / "HAM10000_images_part_1", tmp_path / "p.jsonl", backend)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert found.rows == len(lines) == len(list((synthetic / "HAM10000_images_part_1").iterdir()))
    assert set(found.problems) == {line["problem"] for line in lines}
    with raises(DataError, "predict.constant_unknown"):
        predicted(run, synthetic / "HAM10000_images_part_1", tmp_path / "q.jsonl", constants=SIDE)
    # Rows of a file need no mask and no box, and get the same prompt.
    rows = json.loads((synthetic / "train.json").read_text())
    for row in rows:
        row |= {"dx": None, "mask": "missing.png", "boxes": None, "bbox": None, "spatial_description": None}
    (synthetic / "bare.json").write_text(json.dumps(rows))
    again = Answering()
    assert predicted(run, synthetic / "bare.json", tmp_path / "r.jsonl", again).rows == len(rows)
    assert all("diagnosis" in prompt for prompt in again.prompts)


def test_rows_with_agent_memory_need_their_own_mode(tmp_path: Path) -> None:
    recipe = rolling_recipe(tmp_path)
    with context_of(recipe):
        pass
    with raises(DataError, "predict.rows_have_agent_memory"):
        predicted(find_run(recipe.run_folder), tmp_path, tmp_path / "p.csv")


@pytest.mark.slow
def test_a_model_answers_a_row_as_it_answers_the_question_alone(run: RunFolder, tmp_path: Path) -> None:
    source = run.path / "synthetic" / "test.json"
    with StopRequest() as stop:
        predict_rows(run, RowsRequest(source, tmp_path / "p.jsonl"), stop)
    line = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    row = rows_of(run)[line["id"]]
    answer = predict(run, row["question"], [Path(line["image"])], row["options"])
    assert line["completion"] == answer.text
