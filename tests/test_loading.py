"""Loading a recipe's data: columns, splits, leaks, unusable rows and warnings."""

import json
import pickle
import runpy
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas
import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe, read_file
from toolkit.data import open_index
from toolkit.data.loading import DataSplits
from toolkit.data.row_scan import RowScanner, row_scan_file
from toolkit.errors import NOTHING, DataError
from toolkit.recipe import Images, Recipe, SyntheticData
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.mcq.synthetic import write_chest

Row = dict[str, Any]


def row(number: int, **change: Any) -> Row:
    return {
        "question": f"Question {number}?",
        "options": ["A. Normal", "B. Mass"],
        "correct_answer": "AB"[number % 2],
        "ImagePath": [f"xrays/{number // 2}.png"],
        "Findings": f"A mass, {number // 4}.",
        **change,
    }


def write(file: Path, rows: Iterable[Row], prefix: str = "r") -> str:
    file.write_text(json.dumps({f"{prefix}{number}": one for number, one in enumerate(rows)}), encoding="utf-8")
    return str(file)


def recipe(task: str = "mcq", prompt: Row | None = None, evaluate: Row | None = None, **data: Any) -> Recipe:
    sections = {"run": {"name": "x"}, "data": {"task": task, **data}, "prompt": prompt or {}}
    return make_recipe({**sections, **({"evaluate": evaluate} if evaluate else {})})


def ids(samples: Iterable[Any]) -> list[str]:
    return [sample.id for sample in samples]


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.json", map(row, range(40)))


def test_each_named_file_becomes_its_split(tmp_path: Path, train: str) -> None:
    test = write(tmp_path / "test.json", map(row, range(100, 104)), "t")
    data = load_data(recipe(train=train, test=test))
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 0, 4)
    assert data.test[0].images[0].path == tmp_path / "xrays/50.png"
    assert data.test[-1].id == "t3"
    assert ids(data.test[1:3]) == ["t1", "t2"]
    assert (data.warning_texts, data.dropped, bool(data.leaks)) == ((), (), False)


def test_splits_without_a_file_are_split_off_by_group(train: str) -> None:
    data = load_data(recipe(train=train, split={"validation": 0.1, "test": 0.2}))
    # 20 radiographs of two questions each: 4 + 2 + 14 radiographs.
    assert (len(data.train), len(data.validation), len(data.test)) == (28, 4, 8)
    assert sorted(ids([*data.train, *data.validation, *data.test])) == sorted(f"r{i}" for i in range(40))
    assert not data.leaks
    assert len({sample.group for sample in data.test}) == 4
    assert [(one.code, one.place) for one in data.warnings] == [
        ("data.split_by_group", "test"),
        ("data.split_by_group", "validation"),
    ]


def test_a_group_column_keeps_patients_together(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", (row(i, Patient=f"p{i // 8}") for i in range(40)))
    data = load_data(recipe(train=train, group="Patient", split={"test": 0.2}))
    assert (len(data.test), len({sample.group for sample in data.test})) == (8, 1)
    assert {sample.group for sample in data.test}.isdisjoint(sample.group for sample in data.train)


def test_rows_with_a_common_image_are_split_off_together(tmp_path: Path) -> None:
    # Each study has questions about image a, about image b, and about both. First images alone would give two groups.
    images = [[f"{i}a.png"] if i % 3 == 0 else [f"{i - 1}b.png"] if i % 3 == 1 else [] for i in range(30)]
    rows = (row(i, ImagePath=images[i] or [*images[i - 1], *images[i - 2]]) for i in range(30))
    train = write(tmp_path / "train.json", rows)
    for seed in range(5):
        wanted = recipe(train=train, split={"test": 0.3})
        data = load_data(wanted.model_copy(update={"run": wanted.run.model_copy(update={"seed": seed})}))
        assert (len(data.test), bool(data.leaks)) == (9, False)


def test_leaks_stop_the_run_are_reported_or_are_dropped(tmp_path: Path, train: str) -> None:
    # X-ray 0 is in both, with the same question once: "question 0 ?" differs from "Question 0?" more than in blanks.
    rows = [row(0, question=" question  0?"), row(100), row(1, question="Another?")]
    test = write(tmp_path / "test.json", rows, "t")
    with raises(DataError, "data.splits_leak") as caught:
        load_data(recipe(train=train, test=test))
    assert caught.problem.place == "[data]"
    kept = load_data(recipe(train=train, test=test, on_leak="report"))
    assert len(kept.train) == 40
    leaks = [(one.kind, one.first, one.second, one.count, one.rows, one.examples) for one in kept.leaks.leaks]
    assert leaks == [
        ("group", "train", "test", 1, (2, 2), ((0, 0),)),
        ("image", "train", "test", 1, (2, 2), ((0, 0),)),
        ("question", "train", "test", 1, (1, 1), ((0, 0),)),
    ]
    assert [one.code for one in kept.warnings][:3] == ["data.splits_leak"] * 3
    fewer = load_data(recipe(train=train, test=test, on_leak="drop"))
    assert ids(fewer.train) == [f"r{i}" for i in range(2, 40)]
    assert not fewer.leaks
    (removed,) = fewer.dropped
    assert removed.code == "data.row_leaks"
    assert (removed.source, removed.count, removed.examples) == ("train", 2, ("row 0", "row 1"))


def test_dropping_every_training_row_is_an_error(train: str) -> None:
    with raises(DataError, "data.leaks_leave_no_rows"):
        load_data(recipe(train=train, test=train, on_leak="drop"))


def test_unusable_rows_are_counted_by_reason_with_examples(tmp_path: Path) -> None:
    rows = [row(i) for i in range(97)]
    rows += [row(97, question=""), row(98, correct_answer="C"), row(99, question="")]
    data = load_data(recipe(train=write(tmp_path / "train.json", rows)))
    found = {one.code: (one.count, one.examples) for one in data.dropped}
    assert found == {
        "data.question_missing": (2, ("row 97", "row 99")),
        "tasks.mcq.answer_not_an_option": (1, ("row 98",)),
    }
    assert [one.code for one in data.warnings][:2] == ["data.question_missing", "tasks.mcq.answer_not_an_option"]


def test_too_many_unusable_rows_or_no_usable_row_is_an_error(tmp_path: Path) -> None:
    some = write(tmp_path / "some.json", [row(0), *(row(i, correct_answer="Z") for i in range(1, 4))])
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load_data(recipe(train=some))
    assert (caught.problem.place, caught.problem.value) == (some, "3 of 4")
    assert len(read_file(recipe(train=some, max_dropped=0.75), some).samples) == 1
    none = write(tmp_path / "none.json", [row(1, question="")])
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load_data(recipe(train=none, max_dropped=1.0))
    assert caught.problem.value == "1 of 1"


def test_all_column_problems_are_reported_together_with_suggestions(tmp_path: Path) -> None:
    rows = [{"query": "?", "options": ["a", "b"], "Answer": "A", "PatientID": "p", "pics": "a.png"}]
    file = write(tmp_path / "rows.json", rows)
    wanted = recipe(
        train=file,
        columns={"explanaton": "why", "answer": "Answr", "question": "query"},
        group="PatientId",
        prompt={"context": ["Indikation"]},
        evaluate={"by": ["question_type", "Sex"]},
    )
    with pytest.raises(DataError) as caught:
        load_data(wanted)
    found = {problem.place: (problem.code, problem.value, problem.remedy) for problem in caught.value.problems}
    assert found["data.columns.explanaton"] == ("data.field_unknown", NOTHING, 'Did you mean "explanation"?')
    assert found["data.columns.answer"] == ("data.column_missing", "Answr", 'Did you mean "Answer"?')
    assert found["data.group"] == ("data.column_missing", "PatientId", 'Did you mean "PatientID"?')
    assert found["prompt.context"][:2] == ("data.column_missing", "Indikation")
    assert found["evaluate.by"][:2] == ("data.column_missing", "Sex")
    assert found["data.columns.image"][0] == "data.field_without_column"
    # Neither question_type, a field of the task that this source lacks, nor the field question, which has its column.
    assert len(caught.value.problems) == len(found) == 6
    assert caught.value.place == file


def test_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    with raises(DataError, "data.file_missing", "data.file_missing") as caught:
        load_data(recipe(train=files[0], test=files[1]))
    assert [problem.place for problem in caught.error.problems] == files


def test_a_problem_of_every_file_is_reported_once_and_one_of_some_files_with_the_file(tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "?", "options": ["a", "b"]}
    files = [write(tmp_path / f"{name}.json", [row]) for name in ("train", "validation", "test")]
    with raises(DataError, "data.field_without_column") as caught:
        load_data(recipe(train=files[0], validation=files[1], test=files[2]))
    assert [problem.place for problem in caught.error.problems] == ["data.columns.answer"]
    write(tmp_path / "test.json", [{**row, "answer": "A"}])
    with raises(DataError, "data.field_without_column", "data.field_without_column") as caught:
        load_data(recipe(train=files[0], validation=files[1], test=files[2]))
    places = [problem.place for problem in caught.error.problems]
    assert places == [f"{file}: data.columns.answer" for file in files[:2]]


def test_columns_are_found_without_regard_to_case_and_underscores(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.json", [{"Question": "?", "Choices": ["a", "b"], "correctAnswer": "A", "image_path": "a.png"}]
    )
    samples = read_file(recipe(train=file), file).samples
    assert samples.origin.column == {
        "question": "Question",
        "options": "Choices",
        "answer": "correctAnswer",
        "image": "image_path",
    }


def test_context_with_the_answer_is_reported(tmp_path: Path) -> None:
    rows = [row(i, Indication="Cough", Summary="A mass.") for i in range(4)]
    file = write(tmp_path / "rows.json", rows)
    columns = {"impression": "Summary"}
    data = load_data(recipe(train=file, columns=columns, prompt={"context": ["Indication", "Findings", "Summary"]}))
    found = [one.value for one in data.warnings if one.code == "data.context_has_answer"]
    assert found == ["Findings", "Summary"]
    assert data.train[0].fields["Indication"] == "Cough"
    plain = load_data(recipe(train=file, columns=columns))
    assert "data.context_has_answer" not in [one.code for one in plain.warnings]
    assert "A mass" not in json.dumps(dict(plain.train[0].fields))


def test_trimmed_values_and_repeated_ids_are_reported(tmp_path: Path) -> None:
    rows = [
        {"qid": 1, "question": "?", "answer": "yes", "answer_type": "CLOSED ", "image_name": f"{i}.png"} for i in "ab"
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = load_data(recipe("vqa", train=str(tmp_path / "rows.json"), split={"test": 0}))
    assert ids(data.train) == ["1", "1#2"]
    found = {one.code: one for one in data.warnings}
    assert "data.blanks_removed" in found
    assert found["data.ids_repeated"].value == "1 repeated, such as row 1"


def test_an_id_column_can_be_mapped(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("case,question,answer,image\n007,?,yes,a.png\n")
    assert ids(read_file(recipe("vqa", train=str(file), columns={"id": "case"}), str(file)).samples) == ["007"]


def test_absolute_image_paths_are_read_below_the_image_root_only(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.json", [row(0, ImagePath="/xrays/a.png")])
    with raises(DataError, "data.too_many_unusable_rows"):
        load_data(recipe(train=file))
    two = write(tmp_path / "two.json", [row(0, ImagePath="/xrays/a.png"), row(1, ImagePath="b.png")])
    found = read_file(recipe(train=two, max_dropped=0.5), two).dropped
    assert [(one.code, one.examples) for one in found] == [("data.image_outside_root", ("row 0",))]
    for root, group in (("/", "xrays/a.png"), ("/xrays/x/..", "a.png")):
        (sample,) = read_file(recipe(train=file, image_root=root), file).samples
        assert (sample.images[0].path, sample.group) == (Path("/xrays/a.png"), group)


def test_limits_are_drawn_by_the_seed_and_reported(train: str) -> None:
    wanted: Row = {"train": train, "split": {"test": 0}, "limit_train": 10}
    first, again = load_data(recipe(**wanted)), load_data(recipe(**wanted))
    other = recipe(**wanted).model_copy(update={"run": recipe(**wanted).run.model_copy(update={"seed": 1})})
    assert ids(first.train) == ids(again.train)
    assert len(first.train) == 10
    assert ids(first.train) != ids(load_data(other).train)
    (limited,) = first.warnings
    assert (limited.code, limited.place) == ("data.rows_limited", "train")


def test_the_fingerprint_depends_on_content_rows_and_columns_but_not_on_the_folder(tmp_path: Path, train: str) -> None:
    def fingerprint(file: str, **data: Any) -> str:
        return load_data(recipe(train=file, **data)).fingerprint

    (tmp_path / "copy").mkdir()
    copy = write(tmp_path / "copy" / "train.json", map(row, range(40)))
    assert fingerprint(train) == fingerprint(copy)
    changed = write(tmp_path / "other.json", (row(i, correct_answer="A") for i in range(40)))
    different = {fingerprint(train), fingerprint(changed), fingerprint(train, limit_train=5)}
    assert len({*different, fingerprint(train, split={"test": 0.3}), fingerprint(train, group="Findings")}) == 5


def test_opening_again_reads_no_row_unless_the_column_map_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(i, Patient="p") for i in range(6)]
    train = write(tmp_path / "train.json", [*rows, row(7, question="")])
    looked: list[int] = []
    add = RowScanner.add

    def add_and_note(self: RowScanner, number: int, name: str, record: Row, place: str) -> None:
        looked.append(number)
        add(self, number, name, record, place)

    monkeypatch.setattr(RowScanner, "add", add_and_note)
    wanted: Row = {"train": train, "split": {"test": 0}, "max_dropped": 0.5}
    first = load_data(recipe(**wanted))
    assert looked == list(range(7))
    again = load_data(recipe(**wanted))
    assert looked == list(range(7))
    assert (again.dropped, again.warning_texts, ids(again.train)) == (
        first.dropped,
        first.warning_texts,
        ids(first.train),
    )
    assert {one.group for one in load_data(recipe(**wanted, group="Patient")).train} == {"p"}
    assert len(looked) == 14


def test_a_stored_row_scan_is_not_used_after_a_change_of_the_task_code(tmp_path: Path, private_cache: Path) -> None:
    code = tmp_path / "own" / "task.py"
    code.parent.mkdir()
    code.write_text("def read(name, row, source):\n    raise NotImplementedError\n")
    namespace = runpy.run_path(str(code))
    task = replace(TASKS["mcq"], read=namespace["read"])
    index = open_index(write(tmp_path / "train.json", map(row, range(2))))
    origin = RowOrigin(Path(index.source), tmp_path, {})
    before = row_scan_file(task, origin, index)
    assert row_scan_file(task, origin, index) == before
    code.write_text(code.read_text() + "CHANGED = True\n")
    assert row_scan_file(task, origin, index) != before


def test_a_damaged_row_scan_is_repeated(train: str, private_cache: Path) -> None:
    first = load_data(recipe(train=train))
    (file,) = (private_cache / "rows").glob("*.npz")
    for damaged in (file.read_bytes()[:-100], b"", b"nonsense"):
        file.write_bytes(damaged)
        assert load_data(recipe(train=train)).fingerprint == first.fingerprint


def test_a_column_that_only_a_late_row_has_is_used(tmp_path: Path) -> None:
    rows = [row(i) for i in range(300)]
    del rows[0]["Findings"]
    late = write(tmp_path / "train.json", [*rows, row(300, correct_answer_explanation="Because.")])
    samples = read_file(recipe(train=late), late).samples
    assert samples[300].reference["explanation"] == "Because."
    assert samples.origin.column["explanation"] == "correct_answer_explanation"


def first_id(samples: Any) -> str:
    return str(samples[0].id)


@pytest.mark.slow
def test_samples_can_be_pickled_and_read_in_another_process(train: str) -> None:
    samples = load_data(recipe(train=train)).train
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(first_id, samples).result() == samples[0].id


def test_synthetic_data_loads_from_its_folder(tmp_path: Path) -> None:
    synthetic = SyntheticData(kind="chest", train=12, test=6, size=64)
    write_chest(tmp_path, synthetic, 1)
    data = load_data(recipe(synthetic=synthetic.model_dump(), group="PatientID"), tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 0, 6)
    assert not data.leaks
    assert not data.dropped
    assert all(image.path.is_file() for sample in [*data.train, *data.test] for image in sample.images)


def test_data_without_training_rows_are_rejected(tmp_path: Path) -> None:
    with raises(DataError, "data.no_training_rows") as caught:
        load_data(recipe(), tmp_path)
    assert caught.problem.place == str(tmp_path)


@pytest.fixture
def rad(shared_data: Path) -> Row:
    folder = shared_data / "cxr/vqa_rad"
    return {
        "train": str(folder / "trainset.json"),
        "test": str(folder / "testset.json"),
        "image_root": folder / "images",
    }


def load_rad(rad: Row, **data: Any) -> DataSplits:
    return load_data(recipe("vqa", **rad, **data))


def test_vqa_rad_loads_completely_and_its_known_leaks_are_found(rad: Row) -> None:
    data = load_rad(rad, on_leak="report")
    assert (len(data.train), len(data.test), data.dropped) == (3064, 451, ())
    assert (data.leaks.count("image"), data.leaks.count("question")) == (203, 14)
    assert all(sample.images[0].path.is_file() for sample in data.test)
    with raises(DataError, "data.splits_leak"):
        load_rad(rad)


def test_vqa_rad_can_be_split_without_leaks(rad: Row) -> None:
    data = load_data(recipe("vqa", train=rad["train"], image_root=rad["image_root"], split={"test": 0.2}))
    assert len(data.train) + len(data.test) == 3064
    # At least the fraction, and less than one radiograph more: no radiograph has more than 40 questions.
    assert 613 <= len(data.test) < 613 + 40
    assert not data.leaks
    fewer = load_rad(rad, on_leak="drop")
    assert not fewer.leaks
    assert len(fewer.test) == 451
    assert len(fewer.train) + fewer.dropped[0].count == 3064


def test_slake_is_read_through_a_column_map(shared_data: Path) -> None:
    file = str(shared_data / "cxr/slake/Slake1.0/validate.json")
    samples = read_file(recipe("vqa", train=file, columns={"question_type": "content_type"}), file).samples
    assert len(samples) == 2099
    assert samples[0].group == samples[0].images[0].path.relative_to(samples.origin.image_root).as_posix()


def test_the_recipe_limits_the_images_of_a_question(tmp_path: Path) -> None:
    rows = [row(0), row(1, ImagePath=["a.png", "b.png"])]
    file = write(tmp_path / "rows.json", rows)
    settings: Row = {"max_dropped": 1.0, "test": write(tmp_path / "test.json", [row(9)], "t"), "on_leak": "report"}
    two = load_data(recipe(train=file, **settings))
    one = load_data(recipe(train=file, **settings).model_copy(update={"images": Images(max_per_question=1)}))
    assert (ids(two.train), ids(one.train)) == (["r0", "r1"], ["r0"])
    assert [(dropped.code, dropped.count) for dropped in one.dropped] == [("data.too_many_images", 1)]


def test_a_patients_number_is_the_same_as_int_and_as_float(tmp_path: Path) -> None:
    """A table makes whole numbers floats as soon as one of them is missing."""
    for name, kind in {"train": "int64", "test": "float64"}.items():
        table = pandas.DataFrame([row(n) for n in range(10)])
        table["ImagePath"] = [f"{name}{n}.png" for n in range(10)]
        table["pat"] = pandas.Series(range(10), dtype=kind)
        table.to_parquet(tmp_path / f"{name}.parquet")
    paths: Row = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    assert load_data(recipe(group="pat", on_leak="report", **paths)).leaks.count("group") == 10
