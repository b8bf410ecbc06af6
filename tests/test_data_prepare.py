"""Downloads to rows: official boxes, splits without leakage, interruptions, malformed files, ISIC tables."""

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.downloads import Download, box_mask, isic, note
from tests.helpers.problems import raises
from toolkit.cli import main
from toolkit.data import Tally
from toolkit.errors import NOTHING, DataError, Interrupted, RunError
from toolkit.prepare import PrepareRequest, prepare_ham10000, split_rows
from toolkit.prepare.downloads import read_table
from toolkit.prepare.ham10000 import read_metadata
from toolkit.prepare.measure import ImageFiles, MaskMeasurements, PreparedImage
from toolkit.prepare.sheet import choose_images
from toolkit.prepare.split import join_names

FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}
OUTPUT = {
    "ham10000_with_spatial_data.json",
    "ham10000_with_spatial_data.csv",
    "ham10000_with_spatial_data.parquet",
    "sheet.png",
    "sheet.html",
    "summary.json",
}
BOXES = {
    "ISIC_0024311": [71, 105, 515, 410],
    "ISIC_0027001": [158, 28, 413, 338],
    "ISIC_0027533": [165, 127, 484, 368],
    "ISIC_0027800": [185, 73, 411, 336],
    "ISIC_0024471": [14, 42, 594, 396],
    "ISIC_0024472": [96, 59, 453, 376],
}
"""Of the official masks, x2 and y2 exclusive."""


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path)


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# HAM10000's own files


@pytest.mark.slow
def test_the_official_masks_give_their_known_boxes(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "skin" / "ham10000"
    request = PrepareRequest(tmp_path / "out")
    metadata = folder / "HAM10000_metadata.csv"
    prepared = prepare_ham10000([folder / "images_600x450"], folder / "masks_600x450", metadata, request)
    rows = json.loads((tmp_path / "out" / "ham10000_with_spatial_data.json").read_text())
    assert {row["image_id"]: row["bbox"] for row in rows if row["bbox"]} == BOXES
    assert all(row["mask_available"] == (row["image_id"] in BOXES) for row in rows)
    assert prepared.image_root == folder.resolve()
    assert (prepared.rows, note(prepared, "data.image_of_row_missing"), note(prepared, "data.mask_missing")) == (
        57,
        9958,
        51,
    )
    for row in rows:
        assert (prepared.image_root / row["image"]).is_file()
        if row["bbox"]:
            mask = np.asarray(Image.open(prepared.image_root / row["mask"]).convert("L")) > 0
            assert row["area_fraction"] == pytest.approx(mask.mean(), abs=1e-6)


@pytest.mark.slow
def test_images_of_another_shape_than_their_masks_are_an_error(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "skin" / "ham10000"  # 224 x 224 against 600 x 450
    with raises(DataError, "data.files_unusable") as caught:
        prepare_ham10000(
            [folder / "images_224"],
            folder / "masks_600x450",
            folder / "HAM10000_metadata.csv",
            PrepareRequest(tmp_path / "out"),
        )
    assert "600 x 450" in caught.problem.rule
    assert "224 x 224" in caught.problem.rule
    assert not names_in(tmp_path / "out") & OUTPUT


def test_the_whole_table_splits_with_no_lesion_in_two_splits(shared_data: Path) -> None:
    records = read_metadata(shared_data / "skin" / "ham10000" / "HAM10000_metadata.csv", Tally())
    rows = list(records.values())
    assert len(rows) == 10_015
    lesions, classes = [row.lesion_id for row in rows], [row.dx for row in rows]
    splits = split_rows(lesions, classes, FRACTIONS, seed=3407)
    assert len(set(zip(lesions, splits, strict=True))) == len(set(lesions)) == 7_470
    found = Counter(zip(classes, splits, strict=True))
    largest: defaultdict[str, int] = defaultdict(int)
    for (name, _), size in Counter(zip(classes, lesions, strict=True)).items():
        largest[name] = max(largest[name], size)
    for name, rows_in_class in Counter(classes).items():
        for split, fraction in FRACTIONS.items():
            assert abs(found[name, split] - fraction * rows_in_class) < largest[name]
    # The same on every machine: fixed by what this returned when it was written.
    text = "\n".join(f"{name} {split}" for name, split in sorted(zip(records, splits, strict=True)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "aff68d2e1ba7ec5d"
    backwards = split_rows(lesions[::-1], classes[::-1], FRACTIONS, seed=3407)
    assert backwards[::-1] == splits
    assert split_rows(lesions, classes, FRACTIONS, seed=1) != splits


def test_blank_and_unknown_metadata_are_distinguished(shared_data: Path) -> None:
    records = read_metadata(shared_data / "skin" / "ham10000" / "HAM10000_metadata.csv", Tally()).values()
    assert sum(row.age is None for row in records) == 57
    assert sum(row.sex == "unknown" for row in records) == 57
    assert sum(row.localization == "unknown" for row in records) == 234


# Splits


class_of_group = st.dictionaries(st.integers(0, 60), st.sampled_from(["a", "b", "c"]), min_size=1)


@pytest.mark.slow
@given(class_of_group, st.integers(0, 3), st.data())
@settings(deadline=None)
def test_no_group_is_in_two_splits_and_no_class_exceeds_its_fraction_by_a_group(
    class_of: dict[int, str], seed: int, data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(st.sampled_from(sorted(class_of)), min_size=1, max_size=80))
    groups, classes = [str(group) for group in drawn], [class_of[group] for group in drawn]
    splits = split_rows(groups, classes, FRACTIONS, seed)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    sizes = Counter(groups)
    for name in set(classes):
        own = [group for group, one in zip(groups, classes, strict=True) if one == name]
        if len(set(own)) >= len(FRACTIONS):
            found = Counter(split for one, split in zip(classes, splits, strict=True) if one == name)
            for split, fraction in FRACTIONS.items():
                assert found[split] < fraction * len(own) + max(sizes[group] for group in own)


def test_a_group_with_several_classes_counts_for_the_rarest() -> None:
    groups = ["p0", "p0", "p0", *(f"p{i}" for i in range(1, 40))]
    classes = ["nv", "nv", "mel", *(["nv"] * 30 + ["mel"] * 9)]
    splits = split_rows(groups, classes, {"train": 0.5, "test": 0.5}, seed=1)
    assert len({split for group, split in zip(groups, splits, strict=True) if group == "p0"}) == 1
    melanomas = Counter(split for name, split in zip(classes, splits, strict=True) if name == "mel")
    assert abs(melanomas["train"] - melanomas["test"]) <= 2  # p0 brings one melanoma and two nevi


def test_too_few_lesions_for_all_splits_go_to_training() -> None:
    assert split_rows(["a", "a", "b"], ["nv", "nv", "mel"], FRACTIONS, seed=1) == ["train"] * 3


def test_rows_of_one_patient_or_lesion_are_one_group_also_transitively() -> None:
    names = [("p2", "l1", "a"), ("", "l1", "b"), ("p1", "l1", "c"), ("", "l2", "d"), ("", "", "e")]
    assert join_names(names) == ["p1", "p1", "p1", "l2", "e"]


# Files that are written


def fill(download: Download, count: int) -> None:
    for number in range(count):
        x = number % 30
        download.add(f"ISIC_{number:04d}", ("nv", "mel", "bcc")[number % 3], box_mask((x, 10, x + 20, 30)))


def test_all_written_files_have_the_same_rows(download: Download) -> None:
    fill(download, 12)
    download.add("ISIC_9999", "df", age="", sex="unknown")
    prepared = download.prepare()
    rows = list(download.written().values())
    assert names_in(download.out) == OUTPUT | {"train.json", "validation.json", "test.json", ".written.json"}
    assert pq.read_table(download.out / "ham10000_with_spatial_data.parquet").to_pylist() == rows
    with (download.out / "ham10000_with_spatial_data.csv").open(encoding="utf-8", newline="") as stream:
        cells = list(csv.DictReader(stream))
    texts = {"lesion_id", "image_id", "dx", "dx_type", "sex", "localization", "dataset", "image", "mask", "split"}
    texts.add("spatial_description")
    for row, line in zip(rows, cells, strict=True):
        read = {key: text if key in texts else json.loads(text) for key, text in line.items() if text}
        assert read == {key: value for key, value in row.items() if value is not None}
    by_split = [row for file in prepared.splits.values() for row in json.loads(file.read_text())]
    assert sorted(row["image_id"] for row in by_split) == sorted(row["image_id"] for row in rows)
    assert all(row["split"] == name for name, file in prepared.splits.items() for row in json.loads(file.read_text()))


def test_only_the_owner_reads_what_has_names_of_images(download: Download) -> None:
    download.add("good", mask=box_mask((1, 1, 9, 9)))
    download.add("square", mask=box_mask((1, 1, 9, 9), size=(45, 45)))
    before = os.umask(0)
    try:
        with raises(DataError, "data.files_unusable"):
            download.prepare()
        assert stat.S_IMODE((download.out / "problems.txt").stat().st_mode) == 0o600
        (download.masks / "square_segmentation.png").unlink()
        download.prepare()
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in download.out.iterdir() if file.name in OUTPUT}
    assert modes == dict.fromkeys(OUTPUT, 0o600)


def test_rows_have_locations_and_unknown_values_are_null(download: Download) -> None:
    download.add("a", mask=box_mask((0, 0, 10, 10), (40, 30, 60, 45)))
    download.add("b", "mel", age="", sex="unknown", localization="unknown")
    prepared = download.prepare()
    two, none = download.written()["a"], download.written()["b"]
    assert two["bbox"] == [40, 30, 60, 45]
    assert two["boxes"] == [[40, 30, 60, 45], [0, 0, 10, 10]]
    # (50, 37.5) of 60 x 45 is the last third of both sides, (5, 5) the first.
    place = "lesion located in {} region"
    assert two["spatial_description"] == f"{place.format('lower-right')}; {place.format('upper-left')}"
    assert two["area_fraction"] == pytest.approx((20 * 15 + 100) / (60 * 45), abs=1e-6)
    assert (two["width"], two["height"], two["age"], two["mask_available"]) == (60, 45, 50.0, True)
    assert two["mask"] == "masks/a_segmentation.png"
    assert [none[key] for key in ("age", "sex", "localization")] == [None, "unknown", "unknown"]
    assert [none[key] for key in ("mask", "bbox", "boxes", "polygons", "area_fraction", "spatial_description")] == [
        None
    ] * 6
    assert none["mask_available"] is False
    counts = {code: note(prepared, f"data.{code}") for code in ("cell_missing", "cell_unknown", "several_regions")}
    assert counts == {"cell_missing": 1, "cell_unknown": 2, "several_regions": 1}


def test_splits_of_an_earlier_call_are_removed(download: Download) -> None:
    fill(download, 12)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    inside, beside = download.out / f".partial-{ended.pid}", download.out.parent / f".out.partial-{ended.pid}"
    for left in (inside, beside):
        left.mkdir(parents=True)
    assert set(download.prepare().splits) == {"train", "validation", "test"}
    assert not inside.exists()
    assert not beside.exists()
    assert set(download.prepare(validation=0.0).splits) == {"train", "test"}
    assert not (download.out / "validation.json").exists()
    summary = json.loads((download.out / "summary.json").read_text())
    assert (summary["rows"], summary["seed"], summary["fractions"]["validation"]) == (12, 3407, 0)


def test_fractions_that_leave_no_training_rows_are_rejected(tmp_path: Path) -> None:
    with raises(DataError, "data.no_training_fraction") as caught:
        PrepareRequest(tmp_path, validation=0.5, test=0.5)
    assert caught.problem.value == (0.5, 0.5)


# Strange masks and images


@pytest.mark.parametrize(
    "mask",
    [
        box_mask((12, 9, 30, 21)),
        box_mask((12, 9, 30, 21), value=1),
        cv2.cvtColor(box_mask((12, 9, 30, 21)), cv2.COLOR_GRAY2BGR),
        np.dstack([box_mask((12, 9, 30, 21))] * 3 + [np.full((45, 60), 255, np.uint8)]),
        box_mask((24, 18, 60, 42), size=(120, 90)),
        box_mask((4, 3, 10, 7), size=(20, 15)),
    ],
    ids=["0 and 255", "0 and 1", "colour", "opacity", "twice the size", "a third of the size"],
)
def test_a_mask_has_the_same_box_in_every_format(download: Download, mask: np.ndarray) -> None:
    download.add("a", mask=mask)
    prepared = download.prepare()
    assert download.written()["a"]["bbox"] == [12, 9, 30, 21]
    assert note(prepared, "data.mask_resized") == (mask.shape[:2] != (45, 60))


def test_empty_masks_full_masks_and_specks(download: Download) -> None:
    download.add("empty", mask=box_mask())
    download.add("full", mask=box_mask((0, 0, 60, 45)))
    download.add("speck", mask=box_mask((10, 10, 40, 40), (50, 5, 51, 6)))
    prepared = download.prepare()
    rows = download.written()
    assert [rows["empty"][key] for key in ("bbox", "boxes", "area_fraction")] == [None, [], 0.0]
    assert rows["full"]["bbox"] == [0, 0, 60, 45]
    assert rows["full"]["area_fraction"] == 1.0
    assert rows["speck"]["boxes"] == [[10, 10, 40, 40]]
    assert (note(prepared, "data.mask_empty"), note(prepared, "data.region_too_small")) == (1, 1)


def test_a_mask_with_several_values_is_an_error_until_a_reading_is_chosen(download: Download) -> None:
    labels = box_mask((5, 5, 15, 15), value=2) + box_mask((30, 20, 50, 40)) // 255
    download.add("a", mask=labels)
    with raises(DataError, "data.files_unusable") as caught:
        download.prepare()
    for words in ("a_segmentation.png", "0: 2,200 pixels, 1: 400 pixels, 2: 100 pixels", "any", "each"):
        assert words in caught.problem.rule
    prepared = download.prepare(mask_values="each")
    assert download.written()["a"]["boxes"] == [[30, 20, 50, 40], [5, 5, 15, 15]]
    assert note(prepared, "data.mask_values_several") == 1
    adjacent = box_mask((10, 10, 20, 30), value=1) + box_mask((20, 10, 40, 30), value=2)
    cv2.imwrite(str(download.masks / "a_segmentation.png"), adjacent)
    for reading, boxes in (("each", [[20, 10, 40, 30], [10, 10, 20, 30]]), ("any", [[10, 10, 40, 30]])):
        download.prepare(mask_values=reading)
        row = download.written()["a"]
        assert row["boxes"] == boxes
        assert row["area_fraction"] == pytest.approx(600 / 2700, abs=1e-6)


def test_inverted_masks_and_boxes_that_fill_the_image_are_counted_with_their_files(download: Download) -> None:
    download.add("inverted", mask=255 - box_mask((20, 10, 40, 30)))
    download.add("full", mask=box_mask((0, 0, 60, 45)))
    download.add("cross", mask=box_mask((0, 20, 60, 24), (28, 0, 32, 45)))  # touches all sides, and is no inverted mask
    prepared = download.prepare()
    notes = {one.code: {Path(example).name for example in one.examples} for one in prepared.notes}
    assert notes["data.mask_inverted"] == {"inverted_segmentation.png", "full_segmentation.png"}
    assert notes["data.box_fills_image"] == notes["data.mask_inverted"] | {"cross_segmentation.png"}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a_mask.bmp", "A_MASK.PNG", "a_Segmentation.JPG"])
def test_a_mask_is_found_by_every_usual_name(download: Download, name: str) -> None:
    download.add("a")
    cv2.imwrite(str(download.masks / name), box_mask((8, 8, 32, 24)))
    (download.masks / "a.npy").touch()
    assert note(download.prepare(), "data.mask_type_unknown") == 1
    row = download.written()["a"]
    assert (row["mask"], row["bbox"]) == (f"masks/{name}", [8, 8, 32, 24])


def test_masks_of_another_case_and_masks_that_are_not_read_are_counted(download: Download) -> None:
    for number in range(3):
        download.add(f"ISIC_{number}", mask=box_mask((5, 5, 20, 20)))
    (download.masks / "ISIC_1_segmentation.png").rename(download.masks / "isic_1_Segmentation.png")
    prepared = download.prepare()
    assert (note(prepared, "data.mask_case_changed"), note(prepared, "data.mask_missing")) == (1, 0)
    folders = [download.images, download.masks]
    prepared = prepare_ham10000(folders, None, download.metadata(), PrepareRequest(download.out))
    assert (note(prepared, "data.masks_not_read"), note(prepared, "data.mask_missing")) == (3, 3)


def test_two_different_masks_of_an_image_are_an_error_that_names_both(download: Download) -> None:
    download.add("a", mask=box_mask((1, 1, 9, 9)))
    cv2.imwrite(str(download.masks / "a_mask.png"), box_mask((1, 1, 9, 9)))
    assert note(download.prepare(), "data.file_name_repeated") == 1  # equal files are one mask
    cv2.imwrite(str(download.masks / "a_mask.png"), box_mask((20, 20, 40, 40)))
    with raises(DataError, "data.masks_of_image") as caught:
        download.prepare()
    assert caught.problem.place == "a"
    assert isinstance(caught.problem.value, list)
    assert {Path(file).name for file in caught.problem.value} == {"a_mask.png", "a_segmentation.png"}


def test_a_table_of_labels_is_written_for_other_classes_than_those_of_ham10000(download: Download) -> None:
    fill(download, 3)
    assert download.prepare().labels is None
    download.add("x", "scc")
    labels = download.prepare().labels
    assert labels == download.out / "labels.toml"
    assert {one["code"] for one in tomllib.loads(labels.read_text())["label"]} == {"nv", "mel", "bcc", "scc"}


# Files of the user


def test_files_that_the_preparation_did_not_write_are_kept(download: Download) -> None:
    fill(download, 12)
    download.out.mkdir()
    for name in ("validation.json", "recipe.toml"):
        (download.out / name).write_text("mine")
    with raises(RunError, "output.files_exist") as caught:
        download.prepare(validation=0.0)
    assert caught.problem.value == "validation.json"
    assert names_in(download.out) == {"validation.json", "recipe.toml"}
    assert set(download.prepare(force=True).splits) == {"train", "validation", "test"}
    assert (download.out / "validation.json.old-1").read_text() == "mine"
    assert (download.out / "recipe.toml").read_text() == "mine"
    first = (download.out / "train.json").read_bytes()
    download.prepare()  # its own unchanged files are replaced
    assert (download.out / "train.json").read_bytes() == first
    (download.out / "train.json").write_text("[]")
    with raises(RunError, "output.files_exist") as caught:
        download.prepare()
    assert caught.problem.value == "train.json"
    assert (download.out / "train.json").read_text() == "[]"


def test_an_output_folder_that_cannot_be_created_is_an_error(download: Download) -> None:
    fill(download, 3)
    (download.folder / "file").touch()
    download.out = download.folder / "file" / "out"
    with raises(RunError, "output.folder_not_writable") as caught:
        download.prepare()
    assert caught.problem.place == str(download.out)


def test_all_unusable_files_are_reported_together(download: Download) -> None:
    download.add("good", mask=box_mask((1, 1, 9, 9)))
    download.add("square", mask=box_mask((1, 1, 9, 9), size=(45, 45)))
    download.add("text")
    (download.masks / "text_segmentation.png").write_text("no image")
    download.add("cut")
    (download.images / "cut.jpg").write_bytes((download.images / "cut.jpg").read_bytes()[:200])
    with raises(DataError, "data.files_unusable") as caught:
        download.prepare()
    assert caught.problem.place == str(download.out)
    problems = (download.out / "problems.txt").read_text()
    assert problems.count("\n") == 3
    for words in ("square_segmentation.png", "text_segmentation.png"):
        assert words in problems
        assert words in caught.problem.rule
    for name in ("square", "text"):
        (download.masks / f"{name}_segmentation.png").unlink()
    (download.images / "cut.jpg").unlink()
    prepared = download.prepare()
    assert (prepared.rows, note(prepared, "data.mask_missing"), note(prepared, "data.image_of_row_missing")) == (
        3,
        2,
        1,
    )
    assert not (download.out / "problems.txt").exists()


def test_images_and_masks_without_rows_and_names_in_two_places_are_counted(download: Download) -> None:
    download.add("a", mask=box_mask((1, 1, 9, 9)))
    (download.images / "deeper").mkdir()
    for name in ("a", "stranger"):
        cv2.imwrite(str(download.images / "deeper" / f"{name}.png"), np.zeros((5, 5, 3), np.uint8))
    cv2.imwrite(str(download.masks / "b.png"), box_mask())
    (download.images / "._a.jpg").write_bytes(b"left by an archive")
    prepared = download.prepare()
    assert download.written()["a"]["image"] == "images/a.jpg"
    assert (note(prepared, "data.row_of_image_missing"), note(prepared, "data.row_of_mask_missing")) == (1, 1)
    assert note(prepared, "data.file_name_repeated") == 1


def test_masks_may_be_inside_the_folder_of_images_and_have_plain_names(download: Download) -> None:
    download.add("a")
    inside = download.images / "masks"
    inside.mkdir()
    cv2.imwrite(str(inside / "a.png"), box_mask((1, 1, 9, 9)))
    prepare_ham10000([download.images], inside, download.metadata(), PrepareRequest(download.out))
    row = download.written()["a"]
    assert (row["image"], row["mask"], row["bbox"]) == ("a.jpg", "masks/a.png", [1, 1, 9, 9])


# Tables


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_in_every_dialect(tmp_path: Path, separator: str) -> None:
    lines = [["image_id", "DX "], ["a", '"x, y"' if separator == "," else "x, y"], ["b", "N/A"]]
    text = "\r\n".join(separator.join(cells) for cells in lines) + "\r\n\r\n"
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = read_table(tmp_path / "t.csv")
    assert list(table.records({"dx": ("dx",), "name": ("id", "IMAGE_ID")})) == [
        {"dx": "x, y", "name": "a"},
        {"dx": "", "name": "b"},
    ]


@pytest.mark.parametrize(
    ("content", "code", "place", "value"),
    [
        (b"image_id,age\nx,1\n", "column_missing", "", "image_id, age"),
        (b"", "csv_header_invalid", "", NOTHING),
        (b"lesion_id,image_id,dx\nl,a\n", "csv_cell_count", ", line 2", 2),
        (b"lesion_id,image_id,dx\n,a,nv\n", "cell_empty", ", line 2", NOTHING),
        (b"lesion_id,image_id,dx\nl,a,nv\nl,a,nv\n", "image_in_two_rows", ", image_id", "a"),
        (
            "lesion_id,image_id,dx\nl,ä,nv\n".encode("latin-1"),
            "not_utf8",
            "",
            "invalid continuation byte",
        ),
    ],
)
def test_invalid_metadata_is_reported(tmp_path: Path, content: bytes, code: str, place: str, value: object) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with raises(DataError, f"data.{code}") as caught:
        read_metadata(tmp_path / "m.csv", Tally())
    assert (caught.problem.place, caught.problem.value) == (f"{tmp_path / 'm.csv'}{place}", value)


def test_the_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_id,age\nx,1\n")
    with raises(DataError, "data.column_missing") as caught:
        read_metadata(tmp_path / "m.csv", Tally())
    assert "lesion_id; dx" in caught.problem.rule


def test_no_image_is_an_error_with_an_expected_name(download: Download) -> None:
    download.add("ISIC_1")
    (download.images / "ISIC_1.jpg").unlink()
    with raises(DataError, "data.no_image_of_table") as caught:
        download.prepare()
    assert "ISIC_1.jpg" in caught.problem.rule


# Interruptions


@pytest.mark.slow
def test_ctrl_c_stops_before_any_row_is_written(download: Download) -> None:
    fill(download, 100)

    def press(what: str, done: int, total: int, note: str = "") -> None:
        if done == 40:
            os.kill(os.getpid(), signal.SIGINT)

    with raises(Interrupted, "run.interrupted") as caught:
        download.prepare(progress=press, workers=2)
    assert "40 of 100" in caught.problem.rule
    assert not download.out.exists()
    assert download.prepare(workers=1).rows == 100


@pytest.mark.slow
def test_a_killed_worker_is_an_error(download: Download) -> None:
    fill(download, 100)

    def kill(what: str, done: int, total: int, note: str = "") -> None:
        if done == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with raises(RunError, "data.worker_ended"):
        download.prepare(progress=kill, workers=2)
    assert download.prepare().rows == 100


@pytest.mark.slow
def test_workers_measure_the_same_as_one_process(download: Download) -> None:
    fill(download, 100)
    download.prepare(workers=1)
    alone = download.written()
    download.prepare(workers=2)
    assert download.written() == alone


# The sheet


def test_the_sheet_shows_boxes_and_is_one_file(download: Download) -> None:
    download.add("a", "<script>alert(1)</script> & co", mask=box_mask((12, 9, 30, 21)))
    download.add("b", "nv")
    download.prepare()
    page = (download.out / "sheet.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page
    pixels = np.asarray(Image.open(download.out / "sheet.png").convert("RGB"))
    # Small images are not enlarged: the box is 18 x 12, so its edge has 2 x 18 + 2 x 10 pixels.
    assert (pixels == (0xFF, 0xD4, 0)).all(axis=2).sum() == 56


def test_the_sheet_is_chosen_evenly_by_class_and_by_seed() -> None:
    def image(name: str, diagnosis: str, *, has_box: bool = True) -> PreparedImage:
        found = MaskMeasurements((1, 1), boxes=[[0, 0, 1, 1]] if has_box else None)
        return PreparedImage(name, diagnosis, name, ImageFiles(Path(name)), found, {})

    images = [image(f"n{i}", "nv") for i in range(500)]
    images += [image(f"m{i}", "mel", has_box=i < 5) for i in range(50)]
    images += [image("d0", "df", has_box=False)]
    chosen = choose_images(images, seed=1)
    assert Counter(one.diagnosis for one in chosen) == {"nv": 23, "mel": 24, "df": 1}
    assert {f"m{i}" for i in range(5)} <= {one.name for one in chosen}  # those with a box first
    assert choose_images(images[::-1], seed=1) == chosen
    assert choose_images(images, seed=2) != chosen


def test_an_image_that_cannot_be_decoded_is_counted_on_the_sheet(download: Download) -> None:
    download.add("a", mask=box_mask((12, 9, 30, 21)))
    content = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (45, 60, 3), np.uint8))[1].tobytes()
    (download.images / "a.jpg").unlink()
    (download.images / "a.png").write_bytes(content[:100] + bytes(200) + content[300:])
    assert note(download.prepare(), "data.image_not_decodable") == 1


# The commands


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_the_command_prints_a_section_that_a_recipe_can_have(
    download: Download, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(download, 12)
    files = ("--images", download.images, "--masks", download.masks, "--metadata", download.metadata())
    text = call(capsys, "data", "prepare", "ham10000", *files, "--out", download.out, "--validation", "0")
    assert "12 rows in" in text
    section = tomllib.loads(text[text.index("[data]") :])["data"]
    assert section == {
        "task": "lesion",
        "train": str(download.out / "train.json"),
        "test": str(download.out / "test.json"),
        "boxes": "xyxy",
        "image_root": str(download.folder.resolve()),
        "group": "lesion_id",
    }


def test_the_command_for_isic_prints_what_it_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = isic(
        tmp_path, ["ISIC_1", "ISIC_2"], ["ISIC_1_segmentation"], truth="image,MEL,NV\nISIC_1,1.0,0\nISIC_2,0,1.0\n"
    )
    text = call(capsys, "data", "prepare", "isic", "--source", source, "--stage", 2, "--out", tmp_path / "out")
    assert "1 rows in" in text
    assert "1 images without a box, which are left out of stage 2 (for example ISIC_2)" in text
    assert 'group = "group"' in text


@pytest.mark.parametrize("prepare", ["ham10000", "isic"])
def test_every_preparation_has_help(prepare: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out" in call(capsys, "data", "prepare", prepare, "--help")


def test_progress_is_reported_for_every_image(download: Download) -> None:
    fill(download, 3)
    calls: list[tuple[str, int, int]] = []
    download.prepare(progress=lambda what, done, total, note="": calls.append((what, done, total)))
    assert calls == [("masks", 1, 3), ("masks", 2, 3), ("masks", 3, 3)]
