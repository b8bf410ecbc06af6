"""Rows name their images in many ways. A name that means one file finds it, and any other is an error."""

import json
import os
import time
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe, read_file
from toolkit.data.groups import read_group
from toolkit.data.image_columns import image_columns
from toolkit.data.index import open_index
from toolkit.data.row_images import read_images
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, ImageError, RowProblem
from toolkit.images import ImagePolicy, ImageStore, load, names
from toolkit.images.ref import ImageRef
from toolkit.recipe import Recipe

NFC, NFD = (unicodedata.normalize(form, "Zürich.png") for form in ("NFC", "NFD"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in (
        "a.png",
        "B.JPG",
        "p1/x.jpeg",
        "Study 2/y.PNG",
        NFD,
        "two.png",
        "two.jpg",
        "ct.nii.gz",
        "1;2.png",
        "p1.png",
    ):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return folder


def read(root: Path, row: Mapping[str, Any], column: str = "image", **origin: Any) -> list[tuple[str, str]]:
    """Return (path below the root # part, ways) of each image of a row."""
    images = read_images("r1", row, RowOrigin(Path("rows.csv"), root, {"image": column}, **origin))
    return [(_named(image, root), " ".join(image.found)) for image in images]


def _named(image: ImageRef, root: Path) -> str:
    path = str(image.path.relative_to(root))
    return path if image.part == "0" else f"{path}#{image.part}"


@pytest.mark.parametrize(
    ("value", "path", "ways"),
    [
        ("a.png", "a.png", ""),
        ("a", "a.png", names.SUFFIX_ADDED),
        ("b.jpg", "B.JPG", names.CASE_CHANGED),
        ("b", "B.JPG", f"{names.SUFFIX_ADDED} {names.CASE_CHANGED}"),
        (NFC, NFD, names.UNICODE_CHANGED),
        (r"p1\x.jpeg", "p1/x.jpeg", names.BACKSLASHES),
        (r"P1\x", "p1/x.jpeg", f"{names.BACKSLASHES} {names.CASE_CHANGED} {names.SUFFIX_ADDED}"),
        ("./p1/../p1/x.jpeg", "p1/x.jpeg", ""),
        ("p1", "p1.png", names.SUFFIX_ADDED),
        ("P1", "p1.png", f"{names.SUFFIX_ADDED} {names.CASE_CHANGED}"),
        ("study 2/Y.png", "Study 2/y.PNG", names.CASE_CHANGED),
        ("https://example.org/any/folder/y.PNG?raw=1", "Study 2/y.PNG", names.URL_LOCAL),
        ("s3://bucket/x", "p1/x.jpeg", names.URL_LOCAL),
        ("two", "two", names.NOT_FOUND),
        ("two.png", "two.png", ""),
        ("c.png", "c.png", names.NOT_FOUND),
        ("1;2.png", "1;2.png", ""),
        ({"image_path": "a.png"}, "a.png", ""),
        ({"path": "p1/x.jpeg", "bytes": None}, "p1/x.jpeg", ""),
        ({"file_name": "a.png", "url": "https://example.org/17"}, "a.png", ""),
        ("{'image_path': 'a.png'}", "a.png", ""),
        ("ct.nii.gz#42", "ct.nii.gz#42_axial", ""),
        ("ct#coronal=7", "ct.nii.gz#7_coronal", names.SUFFIX_ADDED),
        ("a.png#3", "a.png#3", ""),
    ],
)
def test_a_name_means_the_only_file_that_fits(root: Path, value: Any, path: str, ways: str) -> None:
    assert read(root, {"image": value}) == [(path, ways)]


def test_a_file_url_is_a_path_inside_the_root(root: Path) -> None:
    assert read(root, {"image": (root / "Study 2/y.PNG").as_uri()}) == [("Study 2/y.PNG", "")]
    with raises(RowProblem, "data.image_outside_root"):
        read(root, {"image": "file:///etc/passwd"})
    with raises(RowProblem, "data.image_outside_root"):
        read(root, {"image": r"..\..\etc\passwd"})
    with raises(RowProblem, "data.image_outside_root"):
        read(root, {"image": {"path": "../../a.png"}})


def test_a_number_is_the_name_of_a_file(root: Path) -> None:
    (root / "54082.jpg").write_bytes(b"x")
    for value in (54082, 54082.0, "54082.0"):
        assert read(root, {"image": value}) == [("54082.jpg", names.SUFFIX_ADDED)]


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (["a.png", "p1/x.jpeg"], ["a.png", "p1/x.jpeg"]),
        ('["a.png", "B.JPG"]', ["a.png", "B.JPG"]),
        ("['a.png', 'B.JPG']", ["a.png", "B.JPG"]),
        ([{"image_path": "a.png"}, {"image_path": "B.JPG"}], ["a.png", "B.JPG"]),
        ("a.png;B.JPG", ["a.png", "B.JPG"]),
        ("a.png|p1/x.jpeg | B.JPG", ["a.png", "p1/x.jpeg", "B.JPG"]),
        ("a.png,c.png", ["a.png", "c.png"]),
        ("a.png B.JPG", ["a.png", "B.JPG"]),
        ("a.png\nB.JPG", ["a.png", "B.JPG"]),
        ("a;b", ["a.png", "B.JPG"]),
        ("a;c", ["a;c"]),
        ("\ufeffa.png\u200b", ["a.png"]),
        ("1;2.png;a.png", ["1;2.png;a.png"]),
        ([], []),
        ("", []),
        ("[]", []),
        (None, []),
        (float("nan"), []),
        ([None], []),
    ],
)
def test_a_cell_has_any_number_of_images_in_order(root: Path, value: Any, paths: list[str]) -> None:
    assert [path for path, _ in read(root, {"image": value})] == paths


def test_numbered_columns_are_read_in_order_without_empty_ones(root: Path) -> None:
    row = {"Image 10": "B.JPG", "image_2": "", "image_1": "a.png", "image3": "p1/x.jpeg", "image_size": "7"}
    assert [path for path, _ in read(root, row, "image_1")] == ["a.png", "p1/x.jpeg", "B.JPG"]
    assert [path for path, _ in read(root, row, "image3")] == ["p1/x.jpeg"]
    assert [path for path, _ in read(root, {"image": "a.png", "image_2": "B.JPG"})] == ["a.png", "B.JPG"]
    assert [path for path, _ in read(root, {"image": "a.png", "image_1": "B.JPG"})] == ["a.png"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "ct.nii.gz", "slice": 42}, ["ct.nii.gz#42_axial"]),
        ({"image": "ct.nii.gz", "Slice": 42.0, "Axis": "Sagittal"}, ["ct.nii.gz#42_sagittal"]),
        ({"image": "ct.nii.gz", "slice": "[3, 5]"}, ["ct.nii.gz#3_axial", "ct.nii.gz#5_axial"]),
        ({"image": "ct.nii.gz", "slice": "3;5"}, ["ct.nii.gz#3_axial", "ct.nii.gz#5_axial"]),
        ({"image": {"path": "ct.nii.gz", "slice": 3, "axis": "coronal"}}, ["ct.nii.gz#3_coronal"]),
        ({"image": "ct.nii.gz"}, ["ct.nii.gz"]),
        ({"image": "a.png", "slice": 42}, ["a.png"]),
    ],
)
def test_slices_of_a_volume_are_columns_or_keys(root: Path, row: Mapping[str, Any], expected: list[str]) -> None:
    assert [path for path, _ in read(root, row)] == expected


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"image": "ct.nii.gz", "slice": "upper"}, "data.slice_not_number"),
        ({"image": "ct.nii.gz", "slice": -1}, "data.slice_not_number"),
        ({"image": "ct.nii.gz", "slice": 1.5}, "data.slice_not_number"),
        ({"image": "ct.nii.gz", "slice": 1, "axis": "z"}, "data.slice_axis_unknown"),
        ({"image": "ct.nii.gz#4", "slice": 5}, "data.slice_named_twice"),
        ({"image": ["ct.nii.gz", "ct.nii.gz"], "slice": [1, 2]}, "data.slices_of_several_volumes"),
        ({"image": "https://example.org/none.png"}, "data.image_is_url"),
        ({"image": "https://example.org/two"}, "data.image_url_ambiguous"),
        ({"image": "data:image/png;base64,AAAA"}, "data.image_is_data_url"),
        ({"image": {"path": "a.png", "file_name": "B.JPG"}}, "data.image_object_ambiguous"),
        ({"image": {"caption": "a.png"}}, "data.image_object_without_path"),
        ({"image": b"\x89PNG"}, "data.image_not_text"),
        ({"image": ["a.png", None]}, "data.image_path_missing"),
        ({"image": ["a.png"] * 9}, "data.too_many_images"),
    ],
)
def test_a_value_that_can_be_read_in_two_ways_or_in_none_is_rejected(
    root: Path, row: Mapping[str, Any], code: str
) -> None:
    with raises(RowProblem, code):
        read(root, row)


def test_a_missing_file_is_reported_without_the_names_of_others(root: Path) -> None:
    with raises(ImageError, "images.missing") as caught:
        load(ImageRef(root / "aa.png"), ImagePolicy())
    assert "a similar name" in caught.problem.rule
    assert "a.png" not in str(caught.error)
    with raises(ImageError, "images.name_ambiguous") as caught:
        load(ImageRef(root / "two"), ImagePolicy())
    assert caught.problem.value == "2 files"


def test_blanks_of_a_url_are_decoded_in_a_name(root: Path) -> None:
    (root / "a b.png").write_bytes(b"x")
    (root / "100%25.png").write_bytes(b"x")
    assert read(root, {"image": "a%20b.png"}) == [("a b.png", names.PERCENT_DECODED)]
    assert read(root, {"image": "100%25.png"}) == [("100%25.png", "")]
    with raises(RowProblem, "data.image_outside_root"):
        read(root, {"image": "%2e%2e/a.png"})


@pytest.mark.parametrize("path", ["/home/other/data/x.jpeg", "../data/x.jpeg"])
def test_a_path_of_another_machine_is_rejected_with_the_depth_of_the_file(root: Path, path: str) -> None:
    with raises(RowProblem, "data.image_outside_root") as caught:
        read(root, {"image": path})
    assert "1 folder below it" in caught.problem.remedy
    assert "x.jpeg" not in str(caught.error)


@pytest.mark.parametrize("path", ["x.jpeg", "p2/x.jpeg", "C:\\data\\x.jpeg"])
def test_a_file_in_another_folder_is_reported(root: Path, path: str) -> None:
    with raises(ImageError, "images.in_other_folder") as caught:
        ImageStore(ImagePolicy(), roots=[root]).get(ImageRef(root / path))
    assert caught.problem.value == "1 file"


def test_a_broken_link_is_reported(root: Path) -> None:
    (root / "link.png").symlink_to(root / "none.png")
    with raises(ImageError, "images.link_broken") as caught:
        load(ImageRef(root / "link.png"), ImagePolicy())
    assert "none.png" not in str(caught.error)


def test_a_file_that_is_added_later_is_found(root: Path) -> None:
    assert read(root, {"image": "late"}) == [("late", names.NOT_FOUND)]
    time.sleep(0.02)
    (root / "late.png").write_bytes(b"x")
    assert read(root, {"image": "late"}) == [("late.png", names.SUFFIX_ADDED)]


def test_each_folder_is_listed_once_for_many_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []

    def listdir(path: str) -> list[str]:
        listed.append(path)
        return os.listdir(path)  # noqa: PTH208

    monkeypatch.setattr(names, "list_names", listdir)
    for number in range(1000):
        read(root, {"image": f"p1/missing{number}"})
        read(root, {"image": "p1/x"})
    assert listed == [f"{root}/p1", str(root)]


def test_a_row_without_image_is_grouped_by_its_question(root: Path) -> None:
    origin = RowOrigin(Path("rows.csv"), root, {"image": "image", "question": "question"})
    first, same, other = (
        read_group({"question": question}, origin, ()) for question in ("Is it benign?", "is it  BENIGN?", "Where?")
    )
    assert first == same != other
    assert read_group({"question": "Is it benign?", "image": "a.png"}, origin, [ImageRef(root / "a.png")]) == "a.png"


def test_the_column_that_looks_like_paths_is_found() -> None:
    rows = [{"id": "a.b", "Figure_path": f"f{i}.jpg", "caption": "see a.png for it", "n": i} for i in range(3)]
    assert image_columns(rows) == ["Figure_path"]
    assert image_columns([{"pics": ["a.png", "b.png"]}, {"pics": []}]) == ["pics"]


def recipe_of(folder: Path, rows: object, task: str = "vqa", **data: Any) -> Recipe:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    dataset = {"task": task, "train": str(file), "image_root": str(folder / "images"), **data}
    return make_recipe({"run": {"name": "x"}, "model": {"name": "tiny"}, "data": dataset, "sft": {}})


def codes_of(warnings: Any) -> dict[str, str]:
    return {problem.code: problem.rule for problem in warnings}


def test_resolved_names_and_rows_without_image_are_counted(tmp_path: Path, root: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "yes", "image": image} for i, image in enumerate(["a", "b", "", [], "a"])]
    recipe = recipe_of(tmp_path, rows)
    for _ in range(2):  # the second time from the cache
        found = read_file(recipe, str(tmp_path / "rows.json"))
        counted = codes_of(found.warnings)
        assert counted[names.SUFFIX_ADDED].startswith("3 rows")
        assert counted[names.CASE_CHANGED].startswith("1 row:")
        assert counted["data.row_without_image"].startswith("2 rows")
        assert [sample.images for sample in found.samples][2:4] == [(), ()]
    (root / "a.jpg").write_bytes(b"x")
    found = read_file(recipe, str(tmp_path / "rows.json"))
    assert codes_of(found.warnings)[names.SUFFIX_ADDED].startswith("1 row:")


def test_a_source_without_image_column_is_text_only_with_a_warning(tmp_path: Path, root: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "yes"} for i in range(4)]
    data = load_data(recipe_of(tmp_path, rows))
    assert "data.no_image_column" in codes_of(data.warnings)
    assert len({sample.group for sample in data.train}) == len(data.train)
    assert not any(sample.images for sample in data.train)


def test_a_source_whose_images_are_in_another_column_is_rejected_with_it(tmp_path: Path, root: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "yes", "Figure_path": "a.png"} for i in range(4)]
    with raises(DataError, "data.field_without_column") as caught:
        load_data(recipe_of(tmp_path, rows))
    assert '"Figure_path"' in caught.problem.remedy


def test_an_empty_column_of_images_does_not_hide_another_one(tmp_path: Path, root: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "no", "image": None, "scan": f"{i}.png"} for i in range(3)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    data = {"task": "vqa", "train": str(file), "split": {"test": 0}}
    with raises(DataError, "data.field_without_column") as caught:
        load_data(make_recipe({"run": {"name": "x"}, "data": data}))
    assert caught.problem.value == "scan"
    mapped = load_data(make_recipe({"run": {"name": "x"}, "data": {**data, "columns": {"image": "scan"}}}))
    assert [row.images[0].path.name for row in mapped.train] == ["0.png", "1.png", "2.png"]


def test_a_task_that_needs_an_image_rejects_a_row_without_one(tmp_path: Path, root: Path) -> None:
    rows = [{"image": "", "diagnosis": "nv"}, {"image": "a.png", "diagnosis": "nv", "width": 4, "height": 4}]
    with raises(DataError, "data.too_many_unusable_rows"):
        load_data(recipe_of(tmp_path, rows, "lesion", split={"test": 0}))


def test_numbered_columns_of_a_source_are_found(tmp_path: Path, root: Path) -> None:
    row = {"question": "q", "answer": "yes", "Image 2": "B.JPG", "Image 1": "a.png", "Image 3": None}
    data = load_data(recipe_of(tmp_path, [row] * 2, split={"test": 0}))
    assert [image.path.name for image in data.train[0].images] == ["a.png", "B.JPG"]
    assert open_index(str(tmp_path / "rows.json")).columns[2] == "Image 2"
