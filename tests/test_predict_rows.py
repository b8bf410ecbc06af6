"""Predictions over files and folders: prompts as in training, tables, resume, unreadable images and existing files."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.helpers.problems import raises, warnings_in
from tests.helpers.rolling import rolling_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.errors import DataError, ImageError, Interrupted, RunError
from toolkit.evaluation.predict import PREDICT, predict
from toolkit.evaluation.predict_rows import RowPredictions, RowsRequest, predict_rows
from toolkit.evaluation.unlabelled_rows import Constants
from toolkit.models.backend import Completion, Policy, Row, Sampling
from toolkit.models.hf import HfBackend
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, StopRequest, find_run

SIDE = Constants("Which side is affected?", ("A. left", "B. right", "C. both"))


class Answering(HfBackend):
    """Answers B, or C for a prompt with ``word``. It keeps the prompts of each batch and the sizes of their images."""

    def __init__(self, word: str = "zone", text: str = "<SOLUTION>{}</SOLUTION>") -> None:
        self.word, self.text = word, text
        self.batches: list[list[str]] = []
        self.messages: list[list[Any]] = []
        self.images: list[tuple[int, int]] = []

    @property
    def prompts(self) -> list[str]:
        return [prompt for batch in self.batches for prompt in batch]

    def load(self, recipe: Recipe, weights: Path | None, *, trainable: bool, mergeable: bool = False) -> Policy:
        return self.load_without_model(recipe)

    def generate(self, policy: Policy, rows: Sequence[Row], sampling: Sampling) -> list[list[Completion]]:
        texts = [str(row.messages[0]["content"][-1]["text"]) for row in rows]
        self.batches.append(texts)
        self.messages += [list(row.messages) for row in rows]
        self.images += [image.size for row in rows for image in row.images]
        letters = ["C" if self.word in text else "B" for text in texts]
        return [[Completion(self.text.format(letter), 1, truncated=letter == "C")] for letter in letters]


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


def press(what: str, done: int, total: int, note: str = "") -> None:
    """Press Ctrl-C after the first batch, as a progress callback."""
    if what == PREDICT:
        os.kill(os.getpid(), signal.SIGINT)


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
    source, whole, first, second = run.path / "synthetic" / "test.json", Answering(), Answering(), Answering()
    predicted(run, source, tmp_path / "whole.csv", whole)
    request = RowsRequest(source, tmp_path / "p.csv")

    with StopRequest() as stop, raises(Interrupted, "run.interrupted"):
        predict_rows(run, request, stop, press, backend=first)
    assert not (tmp_path / "p.csv").exists()
    (partial,) = tmp_path.glob(".p.csv.*.partial")
    seventh = read_csv(tmp_path / "whole.csv")[6]
    line = {"id": seventh["id"], "completion": seventh["completion"], "truncated": seventh["truncated"] == "true"}
    with partial.open("ab") as stream:  # as a killed process leaves it
        stream.write(json.dumps(line).encode() + b'\n{"id": "cut')
    predicted(run, source, tmp_path / "p.csv", second)
    assert [*first.batches, *second.batches] == whole.batches
    assert [len(batch) for batch in whole.batches] == [6, 6]
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "whole.csv"]


def test_saved_predictions_of_other_rows_or_questions_are_not_used(run: RunFolder, tmp_path: Path) -> None:
    folder = run.path / "synthetic" / "images"

    with StopRequest() as stop, raises(Interrupted, "run.interrupted"):
        predict_rows(run, RowsRequest(folder, tmp_path / "p.csv", constants=SIDE), stop, press, backend=Answering())
    backend = Answering()
    other = Constants("Which lung?", SIDE.options)
    found = predicted(run, folder, tmp_path / "p.csv", backend, constants=other)
    assert len(backend.prompts) == found.rows
    assert all("Which lung?" in prompt for prompt in backend.prompts)


def test_a_changed_image_of_the_same_time_is_noticed(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(run.path / "synthetic" / "images", folder)

    with StopRequest() as stop, raises(Interrupted, "run.interrupted"):
        predict_rows(run, RowsRequest(folder, tmp_path / "p.csv", constants=SIDE), stop, press, backend=Answering())
    first, *_, last = sorted(folder.iterdir())
    changed = first.stat()
    first.write_bytes(last.read_bytes())
    os.utime(first, ns=(changed.st_atime_ns, changed.st_mtime_ns))
    backend = Answering()
    assert predicted(run, folder, tmp_path / "p.csv", backend, constants=SIDE).rows == len(backend.prompts)


@pytest.mark.parametrize("text", ['"{}", one\rtwo', "=1+2\r\n<SOLUTION>{}</SOLUTION>", "\r", "é漢\u2028\0{}", "a\n,{}"])
def test_every_completion_is_one_cell(run: RunFolder, tmp_path: Path, text: str) -> None:
    for name in ("p.csv", "p.jsonl"):
        predicted(run, run.path / "synthetic" / "test.json", tmp_path / name, Answering(text=text))
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    completions = [json.loads(line)["completion"] for line in lines]
    assert {len(completions), len(read_csv(tmp_path / "p.csv"))} == {12}
    assert [line["completion"] for line in read_csv(tmp_path / "p.csv")] == completions
    assert set(completions) <= {text.format("B"), text.format("C")}


def test_only_settings_that_keep_prompts_can_change(run: RunFolder, tmp_path: Path) -> None:
    source, out = run.path / "synthetic" / "test.json", tmp_path / "p.csv"
    with raises(RunError, "run.setting_not_changeable") as caught:
        predicted(run, source, out, settings=("images.max_side=56", "data.max_dropped=1"))
    assert caught.problem.value == "images.max_side"
    rows = [
        {"image": row["ImagePath"][0], "Frage": row["question"], "options": row["options"]}
        for row in rows_of(run).values()
    ]
    rows[0]["Frage"] = ""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    columns, few = "data.columns.question=Frage", "evaluate.batch_size=4"
    more: dict[str, Any] = {"image_root": run.path / "synthetic", "settings": [columns, few]}
    with raises(DataError, "data.too_many_unusable_rows"):
        predicted(run, tmp_path / "rows.json", out, **more)
    backend = Answering()
    more["settings"] = [columns, few, "data.max_dropped=0.5"]
    found = predicted(run, tmp_path / "rows.json", out, backend, **more)
    assert (found.rows, [one.count for one in found.dropped]) == (11, [1])
    assert [len(batch) for batch in backend.batches] == [4, 4, 3]


def test_the_table_is_outside_the_folder_of_the_rows(run: RunFolder, tmp_path: Path) -> None:
    folder = run.path / "synthetic" / "images"
    with raises(DataError, "predict.out_in_source"):
        predicted(run, folder, folder / "inner" / "p.csv", constants=SIDE)
    predicted(run, next(folder.glob("*.png")), tmp_path / "p.csv", constants=SIDE)  # one image
    assert len(read_csv(tmp_path / "p.csv")) == 1


def test_every_file_of_a_folder_of_images_is_read_or_counted(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "S1").mkdir(parents=True)
    shutil.copy(get_testdata_file("CT_small.dcm"), folder / "S1" / "IM000001")
    image = next((run.path / "synthetic" / "images").glob("*.png"))
    shutil.copy(image, folder / "a#1;b.png")
    (folder / "README.txt").write_text("About these images.")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "site2").symlink_to(image.parent)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(image.read_bytes())
    found = predicted(run, folder, tmp_path / "p.csv", constants=SIDE)
    assert [line["id"] for line in read_csv(tmp_path / "p.csv")] == ["S1/IM000001", "a#1;b.png"]
    assert {one.code: (one.count, one.examples) for one in found.dropped} == {
        "predict.file_not_image": (2, tuple(f"file {number} in order of path" for number in (1, 2))),
        "predict.file_name_not_unicode": (1, ("file 5 in order of path",)),
        "predict.folder_linked": (1, ("file 6 in order of path",)),
    }
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with raises(ImageError, "images.unusable") as caught:
        predicted(run, folder, tmp_path / "q.csv", constants=SIDE)
    assert "file 6 in order of path, image 1" in caught.problem.rule
    skip = predicted(run, folder, tmp_path / "q.csv", constants=SIDE, settings=["images.unreadable=skip"])
    assert (skip.rows, skip.problems) == (3, {"an image cannot be read": 1})


def test_context_and_image_root_are_never_ignored(run: RunFolder, tmp_path: Path) -> None:
    folder = run.path / "synthetic" / "images"
    for context in ({"PatientAge": "60"}, {"question": "Which lung?"}):
        with raises(DataError, "predict.context_unknown"):
            predicted(run, folder, tmp_path / "p.csv", constants=replace(SIDE, context=context))
    with raises(DataError, "predict.image_root_unused"):
        predicted(run, folder, tmp_path / "p.csv", constants=SIDE, image_root=tmp_path)


def test_an_image_of_several_is_named_with_its_number(run: RunFolder, tmp_path: Path) -> None:
    pages = [Image.new("L", (40, 40), grey) for grey in (10, 200)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    rows = [{"image": f"scan.tif{page}", "question": "Which?", "options": ["left", "right"]} for page in ("", "#1")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    predicted(run, tmp_path / "rows.json", tmp_path / "p.csv")
    images = [line["image"] for line in read_csv(tmp_path / "p.csv")]
    assert images == [f"{tmp_path}/scan.tif", f"{tmp_path}/scan.tif#1"]
    (tmp_path / "again.json").write_text(
        json.dumps([row | {"image": image} for row, image in zip(rows, images, strict=True)])
    )
    predicted(run, tmp_path / "again.json", tmp_path / "q.csv")
    assert [line["image"] for line in read_csv(tmp_path / "q.csv")] == images


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


def test_a_prediction_that_was_killed_after_its_table_is_finished_by_the_same_call(
    run: RunFolder, tmp_path: Path
) -> None:
    source, out, copies = run.path / "synthetic" / "test.json", tmp_path / "p.csv", tmp_path / "copies"
    copies.mkdir()

    def keep(what: str, done: int, total: int, note: str = "") -> None:
        for file in tmp_path.glob(".*.partial"):
            shutil.copy(file, copies)

    with StopRequest() as stop:
        predict_rows(run, RowsRequest(source, out), stop, keep, backend=Answering())
    first, (saved,) = out.read_text(), copies.iterdir()
    shutil.copy(saved, tmp_path)
    predicted(run, source, out)
    assert out.read_text() == first
    assert not list(tmp_path.glob(".*"))
    shutil.copy(saved, tmp_path)
    out.write_text("mine")
    with raises(RunError, "output.file_exists"):
        predicted(run, source, out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("unreadable", ["stop", "skip", "placeholder"])
def test_unreadable_images_follow_the_recipe(tmp_path: Path, unreadable: str, caplog: pytest.LogCaptureFixture) -> None:
    run, folder = make_run(tmp_path, images={"unreadable": unreadable}), tmp_path / "images"
    folder.mkdir()
    for file in sorted((run.path / "synthetic" / "images").glob("*.png"))[:2]:
        (folder / file.name).write_bytes(file.read_bytes())
    broken = bytearray((run.path / "synthetic" / "images" / file.name).read_bytes())
    middle = len(broken) // 2
    broken[middle : middle + 60] = bytes(60)  # its header and its end are whole
    (folder / "broken.png").write_bytes(broken)
    backend = Answering()
    if unreadable == "stop":
        with raises(ImageError, "images.unusable") as caught:
            predicted(run, folder, tmp_path / "p.csv", backend, constants=SIDE)
        assert "file 1 in order of path, image 1" in caught.problem.rule
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
    (warned,) = (one for one in warnings_in(caplog) if one.code == "predict.images_unreadable")
    assert warned.value == 1
    assert "file 1 in order of path, image 1" in warned.rule


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


def test_the_last_answer_of_a_conversation_is_predicted(tmp_path: Path) -> None:
    data = {"task": "chat", "synthetic": {"kind": "chest_chat", "train": 8, "test": 6, "size": 64}}
    run = make_run(tmp_path, data=data, grpo={"max_completion_tokens": 16})
    synthetic, labelled, unlabelled = run.path / "synthetic", Answering(), Answering()
    assert predicted(run, synthetic / "test.json", tmp_path / "a.csv", labelled).rows == 6
    rows = json.loads((synthetic / "test.json").read_text())
    for row in rows.values():
        row["messages"] = row["messages"][:-1]
    (tmp_path / "open.json").write_text(json.dumps(rows))
    predicted(run, tmp_path / "open.json", tmp_path / "b.csv", unlabelled, image_root=synthetic)
    assert labelled.messages == unlabelled.messages
    assert {messages[-1]["role"] for messages in labelled.messages} == {"user"}
    assert len({len(messages) for messages in labelled.messages}) > 1  # several turns
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    one = Answering()
    predicted(run, synthetic / "images", tmp_path / "c.csv", one, constants=Constants("How large is the heart?"))
    assert {prompt.strip() for prompt in one.prompts} == {"How large is the heart?"}
    with raises(DataError, "predict.constant_unknown"):
        predicted(run, tmp_path / "open.json", tmp_path / "d.csv", constants=Constants("How large?"))


def test_a_conversation_of_one_question_needs_no_answer(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, data={"task": "vqa", "synthetic": {"kind": "chest_vqa", "train": 8, "test": 4, "size": 64}}
    )
    image = next((run.path / "synthetic" / "images").glob("*.png"))
    turns = [{"from": "human", "value": "<image>\nIs the heart large?"}, {"from": "gpt", "value": "yes"}]
    backend = Answering()
    for number in (1, 2):
        row = {"image": image.name, "conversations": turns[:number]}
        (tmp_path / f"{number}.json").write_text(json.dumps([row]))
        predicted(run, tmp_path / f"{number}.json", tmp_path / f"{number}.csv", backend, image_root=image.parent)
    assert backend.messages[0] == backend.messages[1]
    assert "Is the heart large?" in backend.prompts[0]


def test_rows_with_agent_memory_need_their_own_mode(tmp_path: Path) -> None:
    recipe = rolling_recipe(tmp_path)
    with context_of(recipe):
        pass
    with raises(DataError, "predict.rows_have_agent_memory"):
        predicted(find_run(recipe.run_folder), tmp_path / "test_results.csv", tmp_path / "p.csv")


@pytest.mark.slow
def test_a_model_answers_a_row_as_it_answers_the_question_alone(run: RunFolder, tmp_path: Path) -> None:
    source = run.path / "synthetic" / "test.json"
    with StopRequest() as stop:
        predict_rows(run, RowsRequest(source, tmp_path / "p.jsonl"), stop)
    line = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    row = rows_of(run)[line["id"]]
    answer = predict(run, row["question"], [Path(line["image"])], row["options"])
    assert line["completion"] == answer.text
