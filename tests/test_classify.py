"""Classification: labels of rows in every layout, the classes that the rows decide, prompts, parser and metrics."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.metrics import f1_score

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, load_recipe, make_recipe
from toolkit.data.loading import DataSplits
from toolkit.data.sample import Answer, Sample
from toolkit.data.sample_set import balance
from toolkit.errors import DataError, RecipeError, ToolkitError
from toolkit.evaluation.generate import class_probabilities
from toolkit.pipeline.dry_run import derive_dry_run
from toolkit.recipe import Recipe
from toolkit.tasks.classify import CLASSIFY
from toolkit.tasks.classify.metrics import f1_of_all, label_sets
from toolkit.tasks.classify.parse import (
    CLASSES_MISSING,
    CONTRADICTION,
    EMPTY,
    LINE_MALFORMED,
    NEGATED,
    SEVERAL,
    UNKNOWN,
)

Rows = Sequence[Mapping[str, Any]]
TISSUES = [{"image": f"{i}.png", "label": label} for i, label in enumerate(["mucus", "debris", "mucus", "adipose"])]
FINDINGS = [
    {"Image Index": "0.png", "Finding Labels": "Edema|Effusion", "Patient ID": 1},
    {"Image Index": "1.png", "Finding Labels": "No Finding", "Patient ID": 2},
    {"Image Index": "2.png", "Finding Labels": "Effusion", "Patient ID": 2},
]


def write(folder: Path, name: str, rows: Rows) -> str:
    """Write rows as CSV, or as JSON if a value is no text or number, with an image for each."""
    plain = all(type(value) in (str, int, float) for row in rows for value in row.values())
    file = folder / f"{name}.{'csv' if plain else 'json'}"
    for row in rows:
        image = folder / str(row.get("image") or row.get("Image Index"))
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(image)
    if not plain:
        file.write_text(json.dumps(list(rows)), encoding="utf-8")
        return str(file)
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


def recipe_of(folder: Path, train: Rows, test: Rows = (), **settings: Any) -> Recipe:
    data: dict[str, Any] = {"task": "classify", "train": write(folder, "train", train), "image_root": folder}
    data |= {"test": write(folder, "test", test)} if test else {}
    data |= {"classify": settings, "split": {"test": 0.0}, "max_dropped": 0.9, "on_leak": "report"}
    return make_recipe({"run": {"name": "one"}, "data": data, "sft": {}})


def read(folder: Path, train: Rows, test: Rows = (), **settings: Any) -> DataSplits:
    return load_data(recipe_of(folder, train, test, **settings))


def labels_of(data: DataSplits) -> list[list[str]]:
    return [sample.reference["labels"] for sample in data.train]


def codes(data: DataSplits) -> list[str]:
    return [warning.code for warning in data.warnings]


def dropped(data: DataSplits) -> dict[str, int]:
    return {one.code: one.count for one in data.dropped}


def one_sample(labels: Sequence[str] = ("mucus", "debris", "no DR"), label: str = "mucus") -> Sample:
    fields = {"question": "Which?", "labels": tuple(labels), "multi": False, "lenient": False}
    return Sample("a", "classify", "g", (), fields, {"labels": [label], "unknown": []})


def several_sample(present: Sequence[str] = ("edema",), unknown: Sequence[str] = (), lenient: bool = False) -> Sample:
    fields = {"question": "Which?", "labels": ("edema", "effusion", "mass"), "multi": True, "lenient": lenient}
    return Sample("a", "classify", "g", (), fields, {"labels": list(present), "unknown": list(unknown)})


def test_the_classes_are_the_sorted_labels_of_the_training_rows(tmp_path: Path) -> None:
    data = read(tmp_path, TISSUES)
    assert data.found == {"labels": ["adipose", "debris", "mucus"], "multi": False}
    sample = data.train[0]
    assert CLASSIFY.question(sample).splitlines()[1:] == ["- adipose", "- debris", "- mucus"]
    assert CLASSIFY.target(sample) == "mucus"
    assert codes(data).count("tasks.classify.labels_read") == 1


def test_names_and_the_order_of_the_classes_come_from_the_recipe(tmp_path: Path) -> None:
    grades = [{"image": f"{i}.png", "diagnosis": grade} for i, grade in enumerate([2, 0, 1, 0])]
    names = {"0": "no DR", "1": "mild", "2": "moderate"}
    data = read(tmp_path, grades, names=names, question="Which grade?")
    assert data.found["labels"] == ["no DR", "mild", "moderate"]
    assert labels_of(data) == [["moderate"], ["no DR"], ["mild"], ["no DR"]]
    assert CLASSIFY.question(data.train[0]).startswith("Which grade?")
    data = read(tmp_path, TISSUES, labels=("mucus", "debris", "adipose"))
    assert data.found["labels"] == ["mucus", "debris", "adipose"]


def test_numbers_that_a_table_stores_as_floats_are_the_same_labels(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": value} for i, value in enumerate(["1.0", "0.0", "1.0"])]
    assert read(tmp_path, rows).found["labels"] == ["0", "1"]


def test_several_labels_in_a_cell_are_separated_and_no_finding_is_no_class(tmp_path: Path) -> None:
    data = read(tmp_path, FINDINGS)
    assert data.found == {"labels": ["Edema", "Effusion"], "multi": True}
    assert labels_of(data) == [["Edema", "Effusion"], [], ["Effusion"]]
    assert [sample.group for sample in data.train] == ["1", "2", "2"]
    assert CLASSIFY.target(data.train[1]) == "Edema: no\nEffusion: no"
    lists = [{"image": "0.png", "labels": ["a", "b"]}, {"image": "1.png", "labels": ["b"]}]
    assert read(tmp_path, lists).found == {"labels": ["a", "b"], "multi": True}


def test_a_row_with_a_finding_and_no_finding_is_dropped_and_counted(tmp_path: Path) -> None:
    wrong = {"Image Index": "3.png", "Finding Labels": "No Finding|Edema", "Patient ID": 4}
    data = read(tmp_path, [*FINDINGS, wrong])
    assert dropped(data) == {"tasks.classify.labels_contradict": 1}


def one_hot(values: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [
        {"image": f"{i}.png", **dict(zip(("MEL", "NV", "BCC"), map(str, row), strict=True))}
        for i, row in enumerate(values)
    ]


COLUMNS = ("MEL", "NV", "BCC")


def test_one_hot_columns_with_one_label_per_row_are_single_labels(tmp_path: Path) -> None:
    rows = one_hot([("0.0", "1.0", "0.0"), ("1.0", "0.0", "0.0"), ("0.0", "0.0", "1.0")])
    data = read(tmp_path, rows, one_hot=COLUMNS, names={"MEL": "melanoma"})
    assert data.found == {"labels": ["melanoma", "NV", "BCC"], "multi": False}
    assert labels_of(data) == [["NV"], ["melanoma"], ["BCC"]]


def test_without_a_label_column_the_error_names_the_one_hot_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, one_hot([(0, 1, 0), (1, 0, 0)]))
    assert "data.classify.one_hot = ['MEL', 'NV', 'BCC']" in str(caught.value)


def test_the_remedy_of_a_row_with_blanks_names_every_class(tmp_path: Path) -> None:
    rows = [{"Path": "0.png", "image": "0.png", "AP/PA": "AP", "Edema": "", "Mass": "1.0", "Fracture": "-1.0"}]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows)
    assert "data.classify.one_hot = ['Edema', 'Mass', 'Fracture']" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "code"), [("-1", "label_uncertain"), ("", "label_blank"), ("2", "label_not_one_hot")]
)
def test_a_value_that_the_recipe_does_not_decide_about_is_no_label(tmp_path: Path, value: str, code: str) -> None:
    rows = one_hot([(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 1, value)])
    data = read(tmp_path, rows, one_hot=COLUMNS)
    assert dropped(data) == {f"tasks.classify.{code}": 1}
    assert len(data.train) == 3


@pytest.mark.parametrize(
    ("policy", "present", "unknown"),
    [("positive", ["NV", "BCC"], []), ("negative", ["NV"], []), ("ignore", ["NV"], ["BCC"])],
)
def test_the_recipe_decides_how_an_uncertain_label_is_read(
    tmp_path: Path, policy: str, present: list[str], unknown: list[str]
) -> None:
    rows = one_hot([(1, 0, 0), (1, 1, 0), (0, 1, -1)])
    data = read(tmp_path, rows, one_hot=COLUMNS, uncertain=policy)
    sample = data.train[2]
    assert (sample.reference["labels"], sample.reference["unknown"]) == (present, unknown)
    assert (f"tasks.classify.{'labels_unknown' if unknown else 'uncertain_labels_read'}") in codes(data)
    assert ("BCC: " in CLASSIFY.target(sample)) == (not unknown)
    assert CLASSIFY.truth(sample) == {"MEL": False, "NV": True, **({} if unknown else {"BCC": bool(present[1:])})}


def test_rows_without_any_label_do_not_decide_between_one_and_several(tmp_path: Path) -> None:
    rows = one_hot([(1, 0, 0), (0, 1, 0), (0, 0, 0), (0, 0, 1)])
    with raises(DataError, "tasks.classify.multi_unclear"):
        read(tmp_path, rows, one_hot=COLUMNS)
    assert read(tmp_path, rows, one_hot=COLUMNS, multi=True).found["multi"] is True
    assert dropped(read(tmp_path, rows, one_hot=COLUMNS, multi=False)) == {"tasks.classify.labels_not_one": 1}


def test_a_label_that_may_be_several_labels_is_an_error_with_both_readings(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": one} for i, one in enumerate(["edema", "mass", "edema, mass"])]
    with raises(DataError, "tasks.classify.label_ambiguous") as caught:
        read(tmp_path, rows)
    assert caught.problem.value == "edema, mass"
    assert 'separator = ","' in caught.problem.remedy
    assert read(tmp_path, rows, separator=",").found == {"labels": ["edema", "mass"], "multi": True}
    listed = read(tmp_path, rows, labels=("edema", "mass", "both"), names={"edema, mass": "both"})
    assert labels_of(listed) == [["edema"], ["mass"], ["both"]]


def test_a_label_joined_with_one_that_never_occurs_alone_is_ambiguous_too(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": one} for i, one in enumerate(["edema", "hernia", "edema;mass"])]
    with raises(DataError, "tasks.classify.label_ambiguous") as caught:
        read(tmp_path, rows)
    assert 'separator = ";"' in caught.problem.remedy
    assert read(tmp_path, rows, separator=";").found == {"labels": ["edema", "hernia", "mass"], "multi": True}


def test_a_row_without_any_label_has_no_class_only_if_the_recipe_says_so(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": one} for i, one in enumerate([["a", "b"], [], ["b"]])]
    data = read(tmp_path, rows)
    assert dropped(data) == {"tasks.classify.label_missing": 1}
    assert 'blank = "negative"' in data.dropped[0].notice().remedy
    assert labels_of(read(tmp_path, rows, blank="negative")) == [["a", "b"], [], ["b"]]


def test_names_with_a_decimal_point_belong_to_the_whole_numbers_of_the_rows(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": i} for i in range(2)]
    assert read(tmp_path, rows, names={"0.0": "no DR", "1.0": "mild"}).found["labels"] == ["no DR", "mild"]


def test_labels_without_a_name_beside_labels_with_one_are_reported(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": i} for i in range(3)]
    data = read(tmp_path, rows, names={"0": "no DR", "1": "mild"})
    (warning,) = [one for one in data.warnings if one.code == "tasks.classify.label_without_name"]
    assert warning.value == ["2"]
    complete = read(tmp_path, rows, names={"0": "no DR", "1": "mild", "2": "severe"})
    assert "tasks.classify.label_without_name" not in codes(complete)


def test_a_class_without_rows_in_the_test_split_is_reported(tmp_path: Path) -> None:
    data = read(tmp_path, TISSUES, [{"image": "t0.png", "label": "mucus"}])
    (warning,) = [one for one in data.warnings if one.code == "tasks.classify.class_not_in_split"]
    assert (warning.place, warning.value) == ("test", ["adipose", "debris"])


def test_a_second_column_that_can_be_the_label_is_reported(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "diagnosis": name, "target": i} for i, name in enumerate(["nevus", "melanoma"])]
    (warning,) = [one for one in read(tmp_path, rows).warnings if one.code == "data.several_answer_columns"]
    assert warning.value == ["target"]


def test_a_column_with_splits_that_is_not_read_is_reported(tmp_path: Path) -> None:
    rows = [{**row, "split": "test" if number == 3 else "train"} for number, row in enumerate(TISSUES)]
    (warning,) = [one for one in read(tmp_path, rows).warnings if one.code == "data.split_column_unused"]
    assert warning.value == ["test", "train"]
    assert "data.split_column_unused" not in codes(read(tmp_path, [{**row, "split": "train"} for row in TISSUES]))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("no-DR", "no DR"), "names_confusable"),
        (("Lung_mass", "lung mass."), "names_confusable"),
        (("mass", "<think>"), "name_unreadable"),
    ],
)
def test_classes_that_a_parser_cannot_distinguish_are_an_error(
    tmp_path: Path, names: tuple[str, str], code: str
) -> None:
    rows = [{"image": f"{i}.png", "label": name} for i, name in enumerate(names)]
    with raises(DataError, f"tasks.classify.{code}") as caught:
        read(tmp_path, rows)
    assert set(names) >= {name for name in names if name in str(caught.problem.value)} > set()
    with pytest.raises(ToolkitError) as raised:
        load_recipe(_toml(tmp_path, f"labels = {list(names)}"))
    assert [problem.code for problem in raised.value.problems] == [f"tasks.classify.{code}"]


@pytest.mark.parametrize(
    "names",
    [
        ("DR", "DRUSEN", "Normal", "Normal mucosa"),  # a name may begin another one
        tuple(map(str, range(12))),
        ("Class: A", "Label: A", "A"),
        ("no tumor", "tumor", "not normal"),
        ("कफ", "कफी"),  # they differ by a vowel sign
        tuple(f"class {number}" for number in range(100)),
    ],
)
def test_every_class_is_parsed_back_from_its_target(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = read(tmp_path, [{"image": f"{i}.png", "label": name} for i, name in enumerate(names)])
    assert set(data.train[0].fields["labels"]) == set(names)
    for sample in data.train:
        answer = CLASSIFY.parse(CLASSIFY.target(sample), sample)
        assert (answer.values["labels"], answer.problem) == (sample.reference["labels"], None)


def test_a_name_that_a_line_cannot_have_is_an_error_with_several_labels_only(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": name} for i, name in enumerate(["upper\nlobe", "mass", "upper\nlobe|mass"])]
    assert len(read(tmp_path, rows[:2]).train) == 2
    with raises(DataError, "tasks.classify.name_unreadable"):
        read(tmp_path, rows)


def test_composed_and_decomposed_letters_are_one_label(tmp_path: Path) -> None:
    train = [{"image": f"{i}.png", "label": name} for i, name in enumerate(["\xe9t\xe9", "hiver", "e\u0301te\u0301"])]
    data = read(tmp_path, train, [{"image": "t.png", "label": "e\u0301te\u0301"}])
    assert data.train[0].fields["labels"] == ("hiver", "\xe9t\xe9")
    assert "tasks.classify.label_not_in_train" not in codes(data)
    sample = one_sample(("hiver", "\xe9t\xe9"), "hiver")
    assert CLASSIFY.parse("e\u0301te\u0301", sample).values["labels"] == ["\xe9t\xe9"]


def test_labels_with_the_same_name_are_one_class_and_reported(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": label} for i, label in enumerate(["normal", "NORMAL", "Benign"])]
    data = read(tmp_path, rows, names={"normal": "normal", "NORMAL": "normal"})
    assert labels_of(data) == [["normal"], ["normal"], ["Benign"]]
    merged = next(one for one in data.warnings if one.code == "tasks.classify.labels_merged")
    assert merged.value == "normal: normal, NORMAL"
    columns = [{"image": "a.png", "MEL": 1, "BCC": 1, "NV": 0}, {"image": "b.png", "MEL": 0, "BCC": 0, "NV": 1}]
    names = {"MEL": "malignant", "BCC": "malignant"}
    data = read(tmp_path, columns, one_hot=("MEL", "BCC", "NV"), names=names)
    assert (data.train[0].fields["labels"], labels_of(data)) == (("malignant", "NV"), [["malignant"], ["NV"]])


def test_a_row_of_only_ignored_labels_is_dropped_and_no_finding_denies_the_blanks_beside_it(tmp_path: Path) -> None:
    columns = ("No Finding", "Edema", "Mass")
    values = [(1, "", ""), ("", 1, 1), ("", "", ""), ("", -1, ""), ("", "", 0)]
    rows = [{"image": f"{i}.png", **dict(zip(columns, of, strict=True))} for i, of in enumerate(values)]
    data = read(tmp_path, rows, one_hot=columns, blank="ignore", uncertain="ignore")
    found = [(sample.reference["labels"], sample.reference["unknown"]) for sample in data.train]
    assert found == [([], []), (["Edema", "Mass"], []), ([], ["Edema"])]
    assert dropped(data) == {"tasks.classify.labels_all_open": 2}


@pytest.mark.parametrize(
    "settings", [{}, {"multi": True}, {"labels": ("Edema", "Mass")}, {"labels": ("Edema", "Mass"), "multi": True}]
)
def test_several_readers_who_differ_about_an_image_are_reported(tmp_path: Path, settings: dict[str, Any]) -> None:
    labels = ["Edema|Mass", "No Finding", "Mass|Edema", "Mass", "Mass"]
    rows = [{"image": "abaac"[i] + ".png", "label": label, "reader": i} for i, label in enumerate(labels)]
    (found,) = [one for one in read(tmp_path, rows, **settings).warnings if one.code == "data.answers_differ"]
    assert found.rule.startswith("3 rows")
    one_hot = [{"image": "a.png", "Edema": i, "Mass": i} for i in (0, 1, 1)]
    data = read(tmp_path, [*one_hot, {"image": "b.png", "Edema": 1, "Mass": 0}], one_hot=("Edema", "Mass"))
    assert "data.answers_differ" in codes(data)


def test_truth_values_in_a_table_are_one_hot_values(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "A": "True", "B": "False"}, {"image": "b.png", "A": "False", "B": "TRUE"}]
    assert labels_of(read(tmp_path, rows, one_hot=("A", "B"))) == [["A"], ["B"]]


def test_an_answer_without_a_line_for_a_known_class_is_not_exact() -> None:
    sample = several_sample(present=(), unknown=("mass",), lenient=True)
    rewards = {
        text: (CLASSIFY.rewards["exact"](sample, answer), CLASSIFY.rewards["format"](sample, answer))
        for text in ("edema: no", "edema: no\neffusion: no")
        if (answer := CLASSIFY.parse(text, sample))
    }
    assert rewards == {"edema: no": (0.0, 0.0), "edema: no\neffusion: no": (1.0, 1.0)}


def _toml(folder: Path, line: str) -> Path:
    file = folder / "one.toml"
    file.write_text(f'[run]\nname = "a"\n[data]\ntask = "classify"\ntrain = "a.csv"\n[data.classify]\n{line}\n[sft]\n')
    return file


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('labels = ["a"]', "recipe.classify_one_class"),
        ('labels = ["a", "a"]', "recipe.list_empty_or_repeated"),
        ('separator = ""', "recipe.classify_separator_empty"),
    ],
)
def test_settings_that_cannot_work_are_rejected(tmp_path: Path, line: str, code: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(_toml(tmp_path, line))
    assert code in [problem.code for problem in caught.value.problems]


def test_labels_that_the_recipe_does_not_list_are_dropped_and_counted(tmp_path: Path) -> None:
    data = read(tmp_path, TISSUES, labels=("mucus", "debris"))
    assert dropped(data) == {"tasks.classify.label_not_listed": 1}


def test_a_label_of_the_test_split_alone_is_reported_and_stays_in_n(tmp_path: Path) -> None:
    test = [{"image": "t0.png", "label": "mucus"}, {"image": "t1.png", "label": "stroma"}]
    data = read(tmp_path, TISSUES, test)
    (warning,) = [one for one in data.warnings if one.code == "tasks.classify.label_not_in_train"]
    assert "stroma (1 rows)" in str(warning.value)
    assert len(data.test) == 2
    sample = data.test[1]
    assert "stroma" not in CLASSIFY.question(sample)
    assert CLASSIFY.scores(sample, CLASSIFY.parse("mucus", sample))["accuracy"] == 0
    assert not any(CLASSIFY.truth(sample).values())


def test_a_class_without_training_rows_is_reported(tmp_path: Path) -> None:
    data = read(tmp_path, TISSUES, labels=("mucus", "debris", "adipose", "stroma"))
    (warning,) = [one for one in data.warnings if one.code == "tasks.classify.class_without_rows"]
    assert warning.value == ["stroma"]


def test_a_split_with_several_labels_needs_a_decision(tmp_path: Path) -> None:
    with raises(DataError, "tasks.classify.split_has_several_labels"):
        read(tmp_path, TISSUES, [{"image": "t.png", "label": "mucus|debris"}])
    data = read(tmp_path, TISSUES, [{"image": "t.png", "label": "mucus|debris"}], multi=True)
    assert data.test[0].reference["labels"] == ["mucus", "debris"]


def test_a_truth_value_is_no_class_without_a_name(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "label": True}, {"image": "1.png", "label": False}]
    with pytest.raises(DataError):
        read(tmp_path, rows)
    named = read(tmp_path, rows, names={"true": "pneumonia", "false": "healthy"})
    assert labels_of(named) == [["pneumonia"], ["healthy"]]


@pytest.mark.parametrize("folder", ["patient{:05d}", "p1000{:04d}", "sub-{:02d}"])
def test_images_of_a_patient_are_a_group_by_the_folder_of_their_patient(tmp_path: Path, folder: str) -> None:
    names = [folder.format(i // 2) for i in range(4)]
    rows = [{"image": f"train/{name}/study1/{i}.png", "label": "ab"[i % 2]} for i, name in enumerate(names)]
    assert [sample.group for sample in read(tmp_path, rows).train] == names


ONE = {
    "mucus": "mucus",
    "Mucus.": "mucus",
    "**Mucus**": "mucus",
    "Answer: mucus": "mucus",
    "The answer is no-DR": "no DR",
    "It looks like debris to me.": "debris",
    "```\ndebris\n```": "debris",
    "": EMPTY,
    "mucus or debris": SEVERAL,
    "tumor": UNKNOWN,
    "not mucus": NEGATED,
    "There is no mucus here": NEGATED,
}


@pytest.mark.parametrize("completion", ONE)
def test_exactly_one_class_must_be_named(completion: str) -> None:
    answer = CLASSIFY.parse(completion, one_sample())
    assert (answer.values.get("label") or answer.problem) == ONE[completion]


def test_a_class_inside_another_name_is_not_named() -> None:
    sample = one_sample(("effusion", "pleural effusion"))
    assert CLASSIFY.parse("a pleural effusion", sample).values["label"] == "pleural effusion"
    assert CLASSIFY.parse("effusions", sample).problem == UNKNOWN


SEVERAL_LINES = {
    "edema: no\neffusion: yes\nmass: no": ["effusion"],
    "- **Edema**: No.\n- Effusion - Yes\n- mass = no": ["effusion"],
    "edema: no\neffusion: no\nmass: no": [],
    "edema: no\nmass: no": CLASSES_MISSING,
    "edema: no\nedema: yes\neffusion: no\nmass: no": CONTRADICTION,
    "edema, effusion": LINE_MALFORMED,
    "edema: no\nfracture: yes\nmass: no": LINE_MALFORMED,
    "edema: maybe\neffusion: no\nmass: no": LINE_MALFORMED,
    " ": EMPTY,
}


@pytest.mark.parametrize("completion", SEVERAL_LINES)
def test_every_class_needs_its_line(completion: str) -> None:
    answer = CLASSIFY.parse(completion, several_sample())
    assert answer.values.get("labels", answer.problem) == SEVERAL_LINES[completion]


def test_targets_are_parsed_back_and_have_every_reward() -> None:
    for sample in (one_sample(), several_sample(), several_sample(()), several_sample(("mass",), ("edema",), True)):
        answer = CLASSIFY.parse(CLASSIFY.target(sample), sample)
        assert answer.problem is None
        rewards = [reward(sample, answer) for reward in CLASSIFY.rewards.values()]
        assert {value for value in rewards if value is not None} == {1.0}
        scores = CLASSIFY.scores(sample, answer)
        assert {value for value in scores.values() if value is not None} == {1.0}


def test_an_unparsed_answer_has_no_reward_and_no_label() -> None:
    sample = one_sample()
    answer = CLASSIFY.parse("mucus or debris", sample)
    assert [reward(sample, answer) for reward in CLASSIFY.rewards.values()] == [0.0, None, 0.0]
    assert CLASSIFY.labels(sample, answer) == ("mucus", None)
    several = several_sample()
    assert CLASSIFY.scores(several, Answer("", {}, EMPTY)) == {
        "accuracy": 0.0,
        "f1": 0.0,
        "label_accuracy": 0.0,
        "format": 0.0,
    }
    assert CLASSIFY.labels(several, answer) is None


def test_f1_over_all_images_is_that_of_scikit_learn() -> None:
    names = ("edema", "effusion", "mass")
    pairs = [(("edema",), ("edema", "mass")), ((), ("mass",)), (("edema", "effusion"), ("effusion",)), ((), ())]
    parts = [label_sets(several_sample(present), Answer("", {"labels": list(named)}, None)) for present, named in pairs]
    found = f1_of_all([part for part in parts if part is not None])
    true, predicted = ([[name in side for name in names] for side in sides] for sides in zip(*pairs, strict=True))
    assert found["micro F1"] == pytest.approx(f1_score(true, predicted, average="micro"))
    assert found["macro F1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert label_sets(one_sample(), Answer("mucus")) is None


def test_the_baseline_is_the_most_frequent_class_or_each_label_above_one_half(tmp_path: Path) -> None:
    data = read(tmp_path, TISSUES)
    assert CLASSIFY.baseline(data.train)(data.train[1]) == "mucus"
    several = read(tmp_path, FINDINGS)
    assert CLASSIFY.baseline(several.train)(several.train[1]) == "Edema: no\nEffusion: yes"


def test_classes_are_drawn_equally_often(tmp_path: Path) -> None:
    data = read(tmp_path, TISSUES)
    assert CLASSIFY.stratum is not None
    _, counts = balance(data.train, CLASSIFY.stratum, 0)
    assert {name: rows for name, (rows, _) in counts.items()} == {"mucus": 2, "adipose": 1, "debris": 1}


def test_the_options_of_an_answer_are_its_classes() -> None:
    (decision,) = CLASSIFY.choices(one_sample()) if CLASSIFY.choices else ()
    assert (dict(decision.options), decision.ends) == ({"mucus": "mucus", "debris": "debris", "no DR": "no DR"}, True)
    several = CLASSIFY.choices(several_sample()) if CLASSIFY.choices else ()
    texts = [one.options[name] for one, name in zip(several, ("edema", "effusion", "mass"), strict=True)]
    assert "".join(texts) == "edema: yes\neffusion: yes\nmass: yes"
    assert class_probabilities([{"a": -1.0, "b": -1.0, "c": -900.0}]) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_a_dry_run_without_rows_keeps_the_names_of_known_tissues(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, TISSUES, labels=("mucus", "debris", "adipose"), one_hot=())
    derived = derive_dry_run(recipe, own_rows=False)
    assert (derived.settings.labels, derived.settings.names) == (None, {})
    root = Path(__file__).parent.parent / "recipes"
    crc = load_recipe(root / "nct_crc.toml")
    assert derive_dry_run(crc, own_rows=False).settings.names == crc.settings.names


def test_a_row_without_an_image_needs_a_text_of_the_context(tmp_path: Path) -> None:
    rows: list[dict[str, str | None]] = [{"image": "0.png", "label": "a", "note": "x"}]
    rows += [{"label": "b", "note": "cough"}, {"label": "a", "note": ""}, {"image": None, "label": "b", "note": ""}]
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    table = {"task": "classify", "train": str(source), "split": {"test": 0.0}, "max_dropped": 0.9}
    data = load_data(make_recipe({"run": {"name": "x"}, "data": table, "prompt": {"context": ["note"]}}))
    assert [(len(one.images), one.reference["labels"]) for one in data.train] == [(1, ["a"]), (0, ["b"])]
    assert [(one.code, one.count) for one in data.dropped] == [("data.image_path_missing", 2)]
