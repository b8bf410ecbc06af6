"""Formats of boxes in rows: found from a whole file, named by the recipe or the row, and never corrected silently."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data.boxes import read_boxes
from toolkit.data.loading import DataSplits
from toolkit.data.task import RowOrigin
from toolkit.errors import DataError, RowProblem
from toolkit.scoring.regions import BOX_FORMATS, XYXY, BoxEvidence, BoxFormat, Size
from toolkit.scoring.regions.box_formats import KNOWN, MIN_BOXES

VOC = [(12, 20, 60, 90), (500, 20, 560, 470), (3, 300, 620, 420), (300, 200, 400, 460)] * 3
"""Corners in images of 640 x 480 pixels, which no other format fits."""
SIZE = (640, 480)


def write(boxes: Sequence[Sequence[float]], name: str, size: Size = SIZE) -> list[list[float]]:
    """Return corners in pixels as the numbers of another format."""
    order, _, unit = name.partition(" ")
    top = {"": None, "unit": 1, "percent": 100, "thousand": 1000}[unit]
    found = []
    for x1, y1, x2, y2 in boxes:
        numbers = {
            "xyxy": [x1, y1, x2, y2],
            "xywh": [x1, y1, x2 - x1, y2 - y1],
            "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
            "yxyx": [y1, x1, y2, x2],
        }[order]
        sides = (size[1], size[0]) if order == "yxyx" else size
        found.append(numbers if top is None else [n * top / s for n, s in zip(numbers, sides * 2, strict=True)])
    return found


def load(folder: Path, boxes: Sequence[Any], key: str | None = None, **data: Any) -> DataSplits:
    """Return the data of a file with one box for each row."""
    rows = [
        {"image": f"{number}.png", "dx": "nv", "bbox": box, "width": SIZE[0], "height": SIZE[1]}
        for number, box in enumerate(boxes)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    table = {"task": "lesion", "train": str(folder / "rows.json"), "split": {"test": 0.0}, **data}
    table |= {} if key is None else {"boxes": key}
    return load_data(make_recipe({"run": {"name": "r"}, "data": table, "sft": {}}))


def boxes_of(data: DataSplits) -> list[list[float]]:
    return [list(box) for sample in data.train for box in sample.reference["boxes"]]


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_every_named_format_gives_the_same_pixels(tmp_path: Path, name: str) -> None:
    data = load(tmp_path, write(VOC, name), name)
    for found, expected in zip(boxes_of(data), VOC, strict=True):
        assert found == pytest.approx(expected)
    assert "data.boxes_found" not in {warning.code for warning in data.warnings}


def test_the_only_format_that_fits_is_used_and_reported(tmp_path: Path) -> None:
    data = load(tmp_path, VOC)
    assert boxes_of(data) == [list(box) for box in VOC]
    assert [warning.code for warning in data.warnings].count("data.boxes_found") == 1
    again = load(tmp_path, VOC)  # from the stored scan
    assert [str(one) for one in again.warnings] == [str(one) for one in data.warnings]
    assert boxes_of(again) == boxes_of(data)
    assert again.fingerprint == data.fingerprint


def test_sizes_that_reach_the_edges_are_not_read_as_corners(tmp_path: Path) -> None:
    corners = [(0, 0, 200, 90), (440, 400, 640, 480), (600, 10, 640, 40), (10, 440, 300, 480)] * 3
    data = load(tmp_path, write(corners, "xywh"))
    assert boxes_of(data) == [list(map(float, box)) for box in corners]
    assert data.train.origin.boxes == BoxFormat("xywh")
    assert load(tmp_path, write(corners, "xywh")).train.origin.boxes == BoxFormat("xywh")


def test_fractions_of_the_image_are_found_if_one_order_fits(tmp_path: Path) -> None:
    data = load(tmp_path, write(VOC, "xyxy unit"))
    assert data.train.origin.boxes == BoxFormat("xyxy", "unit")
    for found, expected in zip(boxes_of(data), VOC, strict=True):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["xywh", "cxcywh unit"])
def test_two_fitting_formats_stop_the_run_and_both_are_shown(tmp_path: Path, name: str) -> None:
    inner = [(200, 150, 260, 210), (300, 200, 330, 260)]
    with raises(DataError, "data.boxes_ambiguous") as caught:
        load(tmp_path, write(inner, name))
    unit = name.partition(" ")[2]
    assert all(f'"{" ".join(filter(None, (order, unit)))}"' in caught.problem.remedy for order in ("xywh", "cxcywh"))
    assert caught.problem.place == str(tmp_path / "rows.json")


def test_the_box_that_is_shown_differs_between_the_formats(tmp_path: Path) -> None:
    with raises(DataError, "data.boxes_ambiguous") as caught:
        load(tmp_path, [[0, 0, 20, 30], [40, 30, 50, 60]])
    assert "of row 1" in caught.problem.rule or "row 1 at" in caught.problem.rule


def test_one_box_of_many_is_enough_evidence(tmp_path: Path) -> None:
    evidence = BoxEvidence()
    for number in range(10_000):
        evidence.add(str(number), (300, 200, 320, 240), (640, 480))
    assert BoxFormat("xywh") in evidence.fitting()
    evidence.add("last", (600, 300, 630, 440), (640, 480))
    assert evidence.fitting() == [XYXY]
    assert all(box[0] in ("0", "last") for _, _, box in evidence.misfits())


EVERYWHERE = [(n * 37 % 560, n * 53 % 400, n * 37 % 560 + 80, n * 53 % 400 + 80) for n in range(60)]
"""Corners that reach all edges of images of 640 x 480 pixels."""


def boxes_in(folder: Path, boxes: Sequence[Any]) -> str:
    """Return the error of a file with these boxes."""
    with raises(DataError, "data.boxes_ambiguous") as caught:
        load(folder, boxes)
    return str(caught.problem)


def test_thousandths_are_never_read_without_the_order_of_x_and_y(tmp_path: Path) -> None:
    for name in ("xyxy thousand", "yxyx thousand"):
        shown = boxes_in(tmp_path, write(VOC, name))
        assert '"xyxy thousand"' in shown
        assert '"yxyx thousand"' in shown


def test_corners_with_y_first_are_not_read_as_thousandths(tmp_path: Path) -> None:
    shown = boxes_in(tmp_path, write(VOC, "yxyx"))
    assert '"yxyx": [y1, x1, y2, x2] in pixels puts row 0 at [12, 20, 60, 90]' in shown
    with raises(DataError, "data.boxes_fit_no_format") as caught:
        load(tmp_path, [[12, 500, 60, 30], *write(VOC, "yxyx")])
    assert '"yxyx" fits all' not in str(caught.problem)


def test_one_box_outside_its_image_does_not_change_the_format_of_all_others(tmp_path: Path) -> None:
    shown = boxes_in(tmp_path, [*VOC, [600, 90, 660, 120]])
    assert '"xyxy"' in shown
    assert "fits 12 of 13 boxes, but not [600, 90, 660, 120] of row 12" in shown
    inner = [(100 + n, 100 + n, 40, 30) for n in range(40)]  # as centres, all are inside as well
    shown = boxes_in(tmp_path, [*inner, (620, 200, 40, 30)])
    assert '"cxcywh"' in shown
    assert '"xywh"' in shown
    data = load(tmp_path, [*inner, (620, 200, 40, 30)], "xywh")
    assert {one.code: one.count for one in data.dropped} == {"data.box_outside_image": 1}


@pytest.mark.parametrize("size", [(512, 512), (800, 600)])
def test_many_boxes_that_reach_the_edges_are_pixels(size: Size) -> None:
    evidence = BoxEvidence()
    for x1, y1, x2, y2 in EVERYWHERE:
        corners = (x1 * size[0] / 640, y1 * size[1] / 480, x2 * size[0] / 640, y2 * size[1] / 480)
        evidence.add("r", corners, size)
    assert evidence.fitting() == [XYXY]


@pytest.mark.parametrize("name", ["xyxy percent", "xyxy thousand"])
def test_fractions_in_a_file_of_another_unit_are_counted(tmp_path: Path, name: str) -> None:
    data = load(tmp_path, [*write(VOC, name), [0.1, 0.2, 0.5, 0.6]], name, max_dropped=0.5)
    assert {one.code: one.count for one in data.dropped} == {"data.box_is_fraction": 1}


def test_x_and_y_of_an_object_with_sides_can_be_the_centre(tmp_path: Path) -> None:
    centres = [dict(zip(("x", "y", "width", "height"), box, strict=True)) for box in write(EVERYWHERE, "cxcywh")]
    assert np.allclose(boxes_of(load(tmp_path, centres)), EVERYWHERE)
    corners = [dict(zip(("x", "y", "w", "h"), box, strict=True)) for box in write(EVERYWHERE, "xywh")]
    assert np.allclose(boxes_of(load(tmp_path, corners)), EVERYWHERE)
    one = [{"x": 300, "y": 200, "width": 40, "height": 20}]
    assert {'"xywh"', '"cxcywh"'} <= set(boxes_in(tmp_path, one).replace(":", " ").split())
    assert boxes_of(load(tmp_path, one, "cxcywh")) == [[280, 190, 320, 210]]
    assert boxes_of(load(tmp_path, one, "xywh")) == [[300, 200, 340, 220]]


def test_one_box_and_a_list_of_boxes_are_read_from_both_columns() -> None:
    origin = RowOrigin(Path("rows.json"), Path("/"), {"bbox": "bbox", "boxes": "boxes"})
    box = (200, 150, 400, 450)
    for row in ({"bbox": [list(box), list(box)]}, {"boxes": [list(box), list(box)]}):
        assert read_boxes(row, origin, (800, 600), "r") == [box, box]
    for one in (
        list(box),
        "200 150 400 450",
        {"x1": 200, "y1": 150, "x2": 400, "y2": 450},
        ["200", "150", "400", "450"],
    ):
        assert read_boxes({"boxes": one}, origin, (800, 600), "r") == [box]


def test_boxes_of_several_formats_in_one_file_stop_the_run(tmp_path: Path) -> None:
    with raises(DataError, "data.boxes_fit_no_format"):
        load(tmp_path, [*VOC, [0.25, 0.25, 0.5, 0.75], [400, 450, 200, 150], [700, 500, 900, 700]])


def test_boxes_outside_their_image_are_counted_with_a_named_format(tmp_path: Path) -> None:
    wrong = [[0.25, 0.25, 0.5, 0.75], [400, 450, 200, 150], [700, 500, 900, 700], [10, 10, 10, 40]]
    data = load(tmp_path, [*VOC, *wrong], "xyxy", max_dropped=0.5)
    codes = {one.code: one.count for one in data.dropped}
    assert codes == {
        "data.box_is_fraction": 1,
        "data.box_reversed": 1,
        "data.box_outside_image": 1,
        "data.box_without_area": 1,
    }
    assert boxes_of(data) == [list(box) for box in VOC]


def test_a_row_names_the_format_of_its_boxes(tmp_path: Path) -> None:
    rows = [
        {"image": f"{name}.png", "dx": "nv", "boxes": write(VOC, name), "box_format": name, "width": 640, "height": 480}
        for name in BOX_FORMATS
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    table = {"task": "lesion", "train": str(tmp_path / "rows.json"), "split": {"test": 0.0}}
    data = load_data(make_recipe({"run": {"name": "r"}, "data": table, "sft": {}}))
    for sample in data.train:
        for found, expected in zip(sample.reference["boxes"], VOC, strict=True):
            assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "box",
    [
        [200, 150, 400, 450],
        ["200", "150", "400", "450"],
        "[200, 150, 400, 450]",
        "200, 150, 400, 450",
        {"x": 200, "y": 150, "width": 200, "height": 300},
        {"xmin": 200, "ymin": 150, "xmax": 400, "ymax": 450},
        {"X1": 200, "Y1": 150, "X2": 400, "Y2": 450},
    ],
)
def test_one_box_can_be_written_in_several_ways(box: Any) -> None:
    origin = RowOrigin(Path("rows.json"), Path("/"), {"bbox": "bbox"})
    assert read_boxes({"bbox": box}, origin, (800, 600), "r") == [(200, 150, 400, 450)]


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [[200, 150], [400, 450]], [1, 2, 3, True], [1, 2, 3, float("inf")], [1, 2, 3, 10**400], "a", 3]
)
def test_anything_else_is_no_box(box: Any) -> None:
    origin = RowOrigin(Path("rows.json"), Path("/"), {"bbox": "bbox"})
    with raises(RowProblem, "data.box_malformed"):
        read_boxes({"bbox": box}, origin, (800, 600), "r")


SIDE = st.integers(100, 2000)


@st.composite
def files(draw: st.DrawFn) -> list[tuple[tuple[float, ...], Size]]:
    """Return corners and image sizes of a file, in pixels."""
    found: list[tuple[tuple[float, ...], Size]] = []
    for _ in range(draw(st.integers(1, 30))):
        size = (draw(SIDE), draw(SIDE))
        x1, y1 = draw(st.integers(0, size[0] - 5)), draw(st.integers(0, size[1] - 5))
        found.append(((x1, y1, draw(st.integers(x1 + 4, size[0])), draw(st.integers(y1 + 4, size[1]))), size))
    return found


@given(files(), st.sampled_from(KNOWN))
@settings(max_examples=150, deadline=None)
def test_the_true_format_of_a_file_is_always_among_those_that_fit(
    file: list[tuple[tuple[float, ...], Size]], name: str
) -> None:
    evidence = BoxEvidence()
    for corners, size in file:
        evidence.add("r", write([corners], name, size)[0], size)
    found = evidence.fitting()
    right, lower = (max(corners[side + 2] / size[side] for corners, size in file) for side in (0, 1))
    same = {side for _, size in file for side in size} in ({100}, {1000})
    if min(right, lower) > 0.51 or len(file) < MIN_BOXES:
        assert BOX_FORMATS[name] in found or same


@given(files(), st.sampled_from(KNOWN))
@settings(max_examples=150, deadline=None)
def test_only_one_format_is_found_only_if_it_is_the_true_one(
    file: list[tuple[tuple[float, ...], Size]], name: str
) -> None:
    evidence = BoxEvidence()
    for corners, size in file:
        evidence.add("r", write([corners], name, size)[0], size)
    right, lower = (max(corners[side + 2] / size[side] for corners, size in file) for side in (0, 1))
    if len(found := evidence.fitting()) == 1 and min(right, lower) > 0.51:
        for corners, size in file:
            assert found[0].to_pixels(write([corners], name, size)[0], size) == pytest.approx(corners)


def test_boxes_of_the_nih_are_read_as_corner_and_size() -> None:
    """The first rows of BBox_List_2017, whose images have 1024 x 1024 pixels."""
    rows = [(225.08, 547.02, 86.78, 79.19), (686.1, 131.54, 185.49, 313.49), (221.83, 317.05, 155.12, 216.95)]
    rows += [(726.24, 494.95, 141.02, 55.32), (660.07, 569.78, 200.68, 78.1), (596.07, 505.78, 56.41, 180.07)]
    rows += [(289.08, 638.14, 83.53, 56.41), (494.1, 577.39, 271.19, 154.03), (10.0, 200.0, 400.0, 100.0)]
    evidence = BoxEvidence()
    for number, row in enumerate(rows):
        evidence.add(str(number), row, (1024, 1024))
    assert evidence.fitting() == [BoxFormat("xywh")]


def test_the_default_of_a_row_is_corners_in_pixels() -> None:
    assert RowOrigin(Path("rows.json"), Path("/"), {}).boxes == XYXY
