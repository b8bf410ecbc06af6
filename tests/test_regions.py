"""Boxes, masks, locations, matching and coordinate conventions, against torchvision, pycocotools and official masks."""

import itertools
import json
import time
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco  # type: ignore[import-untyped]
from scipy.ndimage import binary_fill_holes
from torchvision.ops import box_iou as torch_iou
from torchvision.ops import generalized_box_iou
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from tests.helpers.problems import raises
from toolkit.errors import DataError, RecipeError
from toolkit.recipe import Model
from toolkit.scoring.regions import (
    COORDINATES,
    FAMILIES,
    GRIDS,
    Box,
    Frame,
    Location,
    Size,
    box_giou,
    box_iou,
    choose_coordinates,
    clip_box,
    dice,
    draw_boxes,
    draw_polygons,
    find_family,
    find_regions,
    format_location,
    locate_box,
    location_score,
    mask_iou,
    match,
    order_box,
    parse_box,
    parse_location,
    read_mask,
    read_mask_file,
    write_box,
)
from toolkit.scoring.regions.box_lists import BoxList, parse_boxes
from toolkit.scoring.regions.coordinates import MODEL_TYPES

THOUSAND = Frame((800, 600), (800, 600), COORDINATES["thousand"])

EDGE = st.integers(0, 300)
BOX = st.tuples(EDGE, EDGE, EDGE, EDGE).map(lambda box: order_box(*box)).filter(lambda b: b[0] < b[2] and b[1] < b[3])


@given(BOX, BOX)
@settings(max_examples=200, deadline=None)
def test_iou_and_giou_are_those_of_torchvision(a: Box, b: Box) -> None:
    first, second = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert box_iou(a, b) == pytest.approx(torch_iou(first, second).item())
    assert box_giou(a, b) == pytest.approx(generalized_box_iou(first, second).item())


def test_boxes_without_area_overlap_with_nothing() -> None:
    assert box_iou((5, 5, 5, 9), (0, 0, 10, 10)) == 0
    assert box_iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0
    assert box_giou((5, 5, 5, 5), (5, 5, 5, 5)) == -1
    assert clip_box((50, 50, 80, 90), (40, 40)) == (40, 40, 40, 40)


def blob(seed: int, size: tuple[int, int] = (120, 90)) -> NDArray[np.bool_]:
    """Return a smooth random region, sometimes in several parts."""
    noise = np.random.default_rng(seed).normal(size=size[::-1]).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 9) > 0.02)


@pytest.mark.parametrize("seed", range(20))
def test_mask_iou_is_pycocotools(seed: int) -> None:
    a, b = blob(seed), blob(seed + 100)
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (a, b)]
    assert mask_iou(a, b) == pytest.approx(coco.iou([encoded[0]], [encoded[1]], [0])[0, 0])
    # Dice is 2 |A and B| / (|A| + |B|), counted here pixel by pixel.
    assert dice(mask_iou(a, b)) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("seed", range(20))
def test_regions_cover_the_mask_but_for_specks_and_holes(seed: int) -> None:
    mask = blob(seed)
    found, specks = find_regions(mask)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    assert len(found) + specks == count - 1
    assert [region.area for region in found] == sorted((int(a) for a in stats[1:, 4]), reverse=True)[: len(found)]
    for region in found:
        drawn = draw_polygons([region.polygon], mask.shape[::-1])
        x, y = region.polygon[0]
        own = labels == labels[int(y), int(x)]
        ys, xs = np.nonzero(own)
        assert region.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert mask_iou(drawn, binary_fill_holes(own)) > 0.93  # small shapes are nearly all outline


def test_a_mask_without_region_has_none() -> None:
    assert find_regions(np.zeros((5, 4), bool)) == ([], 0)


def test_specks_are_counted_and_left_out() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:50, 10:60] = True  # 2,000 pixels
    mask[80, 80] = mask[90, 5:8] = True
    mask[70:75, 70:75] = True  # 25 pixels: above 1 % of 2,000
    (large, small), specks = find_regions(mask)
    assert (large.box, small.box, specks) == ((10, 10, 60, 50), (70, 70, 75, 75), 2)
    assert (large.area, small.area) == (2000, 25)


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 7), (3, 250)])
@pytest.mark.parametrize("kind", ["grey", "colour", "alpha", "deep"])
def test_masks_of_any_two_values_are_read(tmp_path: Path, values: tuple[int, int], kind: str) -> None:
    expected = np.zeros((30, 40), bool)
    expected[5:20, 8:33] = True
    image = np.where(expected, values[1], values[0]).astype(np.uint16 if kind == "deep" else np.uint8)
    if kind in ("colour", "alpha"):
        image = np.dstack([image] * 3)
    if kind == "alpha":
        image = np.dstack([image, np.full((30, 40), 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), expected)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("value", [1, 255, 1e6])
def test_tiff_masks_with_floats_or_32_bits_are_read(tmp_path: Path, kind: type, value: float) -> None:
    expected = np.zeros((30, 40), bool)
    expected[5:20, 8:33] = True
    assert cv2.imwrite(str(tmp_path / "mask.tif"), (expected * value).astype(kind))
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), expected)
    labels = np.where(np.arange(40) < 20, expected * 1, expected * 2)
    assert cv2.imwrite(str(tmp_path / "labels.tif"), labels.astype(kind))
    with raises(DataError, "data.mask_values_ambiguous"):
        read_mask(tmp_path / "labels.tif")


def test_negative_numbers_and_nan_are_no_values_of_a_mask(tmp_path: Path) -> None:
    for value in (-1, np.nan):
        image = np.zeros((30, 40), np.float32)
        image[5:20, 8:33] = value
        assert cv2.imwrite(str(tmp_path / "mask.tif"), image)
        with raises(DataError, "data.mask_value_invalid"):
            read_mask(tmp_path / "mask.tif")


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 0)


@pytest.mark.parametrize(
    "values",
    [
        (0, 1, 2),
        (0, 1, 255),
        (0, 127, 255),
        (0, 100, 110),
        (1, 2, 2),
        (200, 255, 255),
        (BLACK, RED, GREEN),
        (WHITE, RED, RED),
    ],
)
def test_masks_with_two_readings_are_an_error_with_their_values(tmp_path: Path, values: Any) -> None:
    image = np.full((40, 60, 3), values[0], np.uint8)
    image[5:15, 5:25] = values[1]
    image[20:35, 30:50] = values[2]
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    with raises(DataError, "data.mask_values_ambiguous") as caught:
        read_mask(tmp_path / "mask.png")
    for value in set(values):
        assert str(value) in str(caught.problem.value)
    if values[0] in (0, BLACK):
        assert read_mask(tmp_path / "mask.png", "any").sum() == 200 + 300
        first, second = read_mask_file(tmp_path / "mask.png").masks("each")
        assert {first.sum(), second.sum()} == {200, 300}


def test_each_of_many_labels_has_a_mask(tmp_path: Path) -> None:
    image = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8), np.ones((5, 5), np.uint8))
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    found = read_mask_file(tmp_path / "mask.png")
    assert found.values == tuple(range(48))
    assert [int(mask.sum()) for mask in found.masks("each")] == [25] * 47


def ellipse_mask(size: int = 300) -> NDArray[np.uint8]:
    mask = np.zeros((size, size), np.uint8)
    cv2.ellipse(mask, (140, 160), (70, 40), 30, 0, 360, 255, -1)
    return mask


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_a_compressed_mask_is_the_original_but_for_its_edge(tmp_path: Path, quality: int) -> None:
    expected = ellipse_mask()
    cv2.imwrite(str(tmp_path / "mask.jpg"), expected, [cv2.IMWRITE_JPEG_QUALITY, quality])
    found = read_mask_file(tmp_path / "mask.jpg")
    assert found.rounded
    assert mask_iou(found.masks()[0], expected > 0) > 0.97
    labels = np.where(np.arange(300) < 140, expected // 2, expected).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "labels.jpg"), labels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    with raises(DataError, "data.mask_values_ambiguous"):
        read_mask(tmp_path / "labels.jpg")


@pytest.mark.parametrize("scale", [2, 5])
def test_a_smoothed_mask_has_its_edge_at_the_middle_value(tmp_path: Path, scale: int) -> None:
    smooth = cv2.resize(ellipse_mask(), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(tmp_path / "mask.png"), smooth)
    found = read_mask_file(tmp_path / "mask.png")
    assert (found.values, found.rounded) == ((0, 255), True)
    assert np.array_equal(found.masks()[0], smooth > 127)


def test_a_thin_region_and_a_constant_mask_are_read(tmp_path: Path) -> None:
    line = np.zeros((20, 30), np.uint8)
    line[10, 5:25] = 255
    line[11, 5:25] = 128
    for name, image, count in (("line", line, 40), ("full", np.full((20, 30), 255, np.uint8), 600)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
        assert read_mask(tmp_path / f"{name}.png").sum() == count


def test_a_mask_in_the_opacity_is_an_error(tmp_path: Path) -> None:
    image = np.zeros((20, 30, 4), np.uint8)
    image[5:10, 5:10, 3] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    with raises(DataError, "data.mask_in_opacity"):
        read_mask(tmp_path / "mask.png")


def test_a_mask_that_is_empty_missing_or_no_image(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "empty.png"), np.zeros((4, 4), np.uint8))
    assert not read_mask(tmp_path / "empty.png").any()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "nothing.png").touch()
    for name, code in {
        "text.png": "data.mask_not_image",
        "nothing.png": "data.mask_not_image",
        "x.png": "data.mask_not_readable",
    }.items():
        with raises(DataError, code) as caught:
            read_mask(tmp_path / name)
        assert caught.problem.place == str(tmp_path / name)


def test_boxes_and_polygons_are_drawn_at_their_pixels() -> None:
    box = draw_boxes([(2, 3, 6, 5)], (10, 8))
    assert box.sum() == 8
    assert box[3:5, 2:6].all()
    # The centre of pixel 2 is 2.5: an edge at 2.4 takes it in, one at 2.6 does not.
    assert draw_boxes([(2.4, 0, 4, 1)], (10, 8))[0].tolist() == [False, False, True, True, *[False] * 6]
    assert draw_boxes([(2.6, 0, 4, 1)], (10, 8))[0].tolist() == [False, False, False, True, *[False] * 6]
    # Vertices are pixels of the region: the same box as a polygon ends at x = 5 and y = 4.
    assert np.array_equal(draw_polygons([[(2, 3), (5, 3), (5, 4), (2, 4)]], (10, 8)), box)
    assert not draw_polygons([[]], (10, 8)).any()
    assert draw_polygons([[(-1e12, -1e12), (1e12, -1e12), (1e12, 1e12), (-1e12, 1e12)]], (10, 8)).all()


OFFICIAL = {
    "ISIC_0024311": (71, 105, 515, 410),
    "ISIC_0027001": (158, 28, 413, 338),
    "ISIC_0027533": (165, 127, 484, 368),
    "ISIC_0027800": (185, 73, 411, 336),
    "ISIC_0024471": (14, 42, 594, 396),
    "ISIC_0024472": (96, 59, 453, 376),
}


@pytest.mark.parametrize(("name", "box"), OFFICIAL.items())
def test_boxes_of_official_masks(shared_data: Path, name: str, box: Box) -> None:
    file = shared_data / "skin/ham10000/masks_600x450" / f"{name}_segmentation.png"
    if not file.is_file():
        pytest.skip(f"{file.name} is missing")
    mask = read_mask(file)
    regions, _ = find_regions(mask)
    assert regions[0].box == box
    assert mask_iou(draw_polygons([region.polygon for region in regions], (600, 450)), mask) > 0.99


def cells(grid: int) -> list[Location]:
    return [(row, column) for row in range(grid) for column in range(grid)]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_place_is_parsed_as_it_is_formatted(grid: int) -> None:
    for place in cells(grid):
        assert parse_location(format_location(place, grid), grid) == place


@pytest.mark.parametrize(
    ("text", "grid", "place"),
    [
        ("Upper left quadrant", 3, (0, 0)),
        ("lesion located in center-center region", 3, (1, 1)),
        ("bottom right", 3, (2, 2)),
        ("the middle of the image", 3, (1, 1)),
        ("top", 3, (0, 1)),
        ("right", 3, (1, 2)),
        ("center-left", 3, (1, 0)),
        ("far upper left", 3, (0, 0)),
        ("far upper-far left", 5, (0, 0)),
        ("far left", 5, (2, 0)),
        ("upper and lower", 3, None),
        ("on the back", 3, None),
        ("", 3, None),
    ],
)
def test_places_in_other_words(text: str, grid: int, place: tuple[int, int] | None) -> None:
    assert parse_location(text, grid) == place


def test_the_place_is_that_of_the_centre() -> None:
    assert locate_box((0, 0, 600, 450), (600, 450)) == (1, 1)
    assert locate_box((500, 400, 600, 450), (600, 450)) == (2, 2)
    assert locate_box((590, 440, 600, 450), (600, 450), 5) == (4, 4)
    assert locate_box((600, 450, 600, 450), (600, 450)) == (2, 2)  # on the edge is inside


@pytest.mark.parametrize("grid", GRIDS)
def test_a_place_scores_by_its_distance(grid: int) -> None:
    scores = {(a, b): location_score(a, b, grid) for a in cells(grid) for b in cells(grid)}
    assert all((score == 1) == (a == b) and 0 <= score <= 1 for (a, b), score in scores.items())
    assert scores[(0, 0), (grid - 1, grid - 1)] == 0


@given(st.lists(st.integers(0, 5), max_size=4), st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=200, deadline=None)
def test_matching_is_the_best_of_all_assignments(references: list[int], answers: list[int]) -> None:
    def score(one: int, other: int) -> float:
        return 1 - abs(one - other) / 5

    pairs, mean = match(references, answers, score)
    short, long = sorted([references, answers], key=len)
    best = max(
        sum(score(a, b) for a, b in zip(short, some, strict=True)) for some in itertools.permutations(long, len(short))
    )
    assert mean == pytest.approx(best / max(len(long), 1))
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)


def test_a_missing_and_an_extra_answer_cost_the_same() -> None:
    same = lambda a, b: float(a == b)  # noqa: E731
    assert match([1, 2], [1], same) == ([(0, 0)], 0.5)
    assert match([1], [1, 2], same) == ([(0, 0)], 0.5)
    assert match([1], [], same) == ([], 0.0)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "thousand"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "pixels28"),
        ("/models/qwen2_5_vl_trained", "pixels28"),
        ("unsloth/Qwen3-VL-8B-Instruct", "thousand"),
        ("google/medgemma-4b-it", "thousand"),
        ("unsloth/medgemma-4b-it-unsloth-bnb-4bit", "thousand"),
        ("google/medgemma-27b-it", "thousand"),
        ("google/medgemma-1.5-4b-it", "thousand_yx"),
        ("/models/medgemma-1.5-4b-it", "thousand_yx"),
        ("google/gemma-3-4b-it", "thousand"),
        ("google/gemma-4-E4B-it", "thousand_yx"),
        ("google/paligemma2-3b-mix-448", "locations"),
        ("tiny", "hundred"),
    ],
)
def test_each_family_has_its_convention(model: str, name: str) -> None:
    assert choose_coordinates("auto", model).name == name
    assert choose_coordinates("unit", model).name == "unit"


def test_an_unknown_family_needs_its_coordinates() -> None:
    with raises(RecipeError, "recipe.coordinates_unknown") as caught:
        choose_coordinates("auto", "acme/vision", "data.lesion.coordinates")
    assert caught.problem.place == "model.family"
    assert "data.lesion.coordinates" in caught.problem.rule
    assert choose_coordinates("auto", "acme/vision", family="qwen2.5-vl").name == "pixels28"


def model_folder(folder: Path, model_type: str, card: str = "", **config: str) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    (folder / "README.md").write_text(card)
    return str(folder)


@pytest.mark.parametrize("name", ["medgemma-4b", "medgemma-4b-it", "medgemma", "model", "1"])
def test_a_folder_that_does_not_name_the_release_needs_its_family(tmp_path: Path, name: str) -> None:
    """MedGemma 1 and 1.5 have the same model_type and other coordinates."""
    model = model_folder(tmp_path / name, "gemma3")
    assert find_family(model) is None
    with raises(RecipeError, "recipe.coordinates_unknown"):
        choose_coordinates("auto", model)
    assert choose_coordinates("auto", model, family="medgemma-1.5").name == "thousand_yx"


@pytest.mark.parametrize(
    ("config", "card", "family"),
    [
        ({"_name_or_path": "google/medgemma-1.5-4b-it"}, "", "medgemma-1.5"),
        ({"_name_or_path": "google/medgemma-4b-it"}, "", "medgemma-1"),
        ({}, "---\nbase_model: google/medgemma-1.5-4b-it\n---\n# My model\n", "medgemma-1.5"),
        ({}, "---\nbase_model:\n- google/medgemma-4b-it\n---\n", "medgemma-1"),
        ({}, "# MedGemma 1.5 model card\n", "medgemma-1.5"),
        ({}, "# MedGemma 1 model card\n", "medgemma-1"),
        ({}, "# MedGemma model card\n", None),
        ({"_name_or_path": "google/medgemma-4b-it"}, "# MedGemma 1.5 model card\n", None),
        ({"_name_or_path": "google/gemma-3-4b-it"}, "", "gemma-3"),
    ],
)
def test_the_files_of_a_model_name_its_release(
    tmp_path: Path, config: dict[str, str], card: str, family: str | None
) -> None:
    assert find_family(model_folder(tmp_path / "m", "gemma3", card, **config)) == family


def test_the_model_type_takes_precedence_over_the_name_of_the_folder(tmp_path: Path) -> None:
    assert find_family(model_folder(tmp_path / "medgemma-1.5", "qwen2_5_vl")) == "qwen2.5-vl"
    assert find_family(model_folder(tmp_path / "qwen2-vl", "gemma3")) is None
    assert find_family(model_folder(tmp_path / "qwen3-vl", "llava")) is None


def test_the_recipe_can_name_every_family() -> None:
    (choices, _) = get_args(Model.model_fields["family"].annotation)
    assert set(get_args(choices)) == set(FAMILIES)
    assert {family for families in MODEL_TYPES.values() for family in families} <= set(FAMILIES)


def test_y_first_conventions_swap_each_pair() -> None:
    box = (71, 105, 515, 410)
    frame = Frame((600, 450), (600, 450), COORDINATES["thousand_yx"])
    assert frame.write(box) == [233, 118, 911, 858]  # as MedGemma 1.5's box_2d
    assert parse_box("[233, 118, 911, 858]", frame) == pytest.approx(box, abs=0.3)
    assert frame.write((60, 45)) == [100, 100]
    tokens = Frame((600, 450), (600, 450), COORDINATES["locations"])
    # 1024 x 105 / 450 = 238.9, 1024 x 71 / 600 = 121.2, 1024 x 410 / 450 = 933, 1024 x 515 / 600 = 878.9
    assert write_box(tokens, box) == "<loc0239><loc0121><loc0933><loc0879>"
    assert parse_box("<loc0239><loc0121><loc0933><loc0879>", tokens) == pytest.approx(box, abs=0.3)


@pytest.mark.parametrize("name", COORDINATES)
@given(st.tuples(st.integers(20, 3000), st.integers(20, 3000)), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_coordinates_round_trip_within_half_a_unit(name: str, size: Size, x: float, y: float) -> None:
    width, height = (max(1, round(side * min(1, 896 / max(size)))) for side in size)
    frame = Frame(size, (width, height), COORDINATES[name])
    point = (x * size[0], y * size[1])
    unit = 10.0**-frame.coordinates.digits
    # The last of the 1024 tokens is also that of the edge.
    half = 1.0001 if frame.coordinates.tokens else 0.5001
    for back, value, side, span in zip(frame.read(frame.write(point)), point, size, frame.span, strict=True):
        assert abs(back - value) <= half * unit * side / span


@pytest.mark.parametrize("size", [(600, 450), (1022, 767), (896, 672), (300, 224), (57, 1000)])
def test_qwens_pixels_are_those_of_its_processor(size: tuple[int, int]) -> None:
    width, height = size
    rows, columns = smart_resize(height, width, factor=28, min_pixels=56 * 56, max_pixels=12845056)
    assert Frame(size, size, COORDINATES["pixels28"]).span == (columns, rows)


def test_a_box_is_written_in_whole_numbers_or_thousandths() -> None:
    box = (71, 105, 515, 410)
    # 71 / 600 = 0.118, 105 / 450 = 0.233, 515 / 600 = 0.858, 410 / 450 = 0.911
    assert Frame((600, 450), (600, 450), COORDINATES["thousand"]).write(box) == [118, 233, 858, 911]
    assert Frame((600, 450), (600, 450), COORDINATES["hundred"]).write(box) == [12, 23, 86, 91]
    assert Frame((600, 450), (600, 450), COORDINATES["unit"]).write(box) == [0.118, 0.233, 0.858, 0.911]
    # Half the size: half the pixels, rounded up from the centre on.
    assert Frame((600, 450), (300, 225), COORDINATES["pixels"]).write(box) == [36, 53, 258, 205]


@pytest.mark.parametrize("text", ["[ ]", "```json\n[\n]\n```", "None."])
def test_an_empty_list_is_an_answer_without_boxes(text: str) -> None:
    assert parse_boxes(text, THOUSAND) == BoxList()


def test_sentences_and_several_fences_around_a_list_lose_no_box() -> None:
    box = '{"bbox_2d": [100, 100, 200, 200], "label": "nodule"}'
    assert len(parse_boxes(f"The set {{a}} has: [{box}]", THOUSAND).boxes) == 1
    assert len(parse_boxes(f"```json\n[{box}]\n```\n```json\n[{box}]\n```", THOUSAND).boxes) == 2
    assert parse_boxes(f'[{box}, {{"bbox_2d": [1, 2', THOUSAND).unread


@pytest.mark.parametrize("part", ["<bbox>", "<bbox>[1", "{", '{"bbox":[', "<loc0001>", "```"])
def test_a_degenerate_completion_takes_seconds_at_most(part: str) -> None:
    start = time.process_time()
    assert not parse_boxes(part * 20000, THOUSAND).boxes
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "model",
    [
        *("google/medgemma-1.6-4b-it", "google/medgemma-1.1-4b-it", "google/translategemma-4b-it", "me/gemma-30b"),
        *("google/shieldgemma-3", "me/gemma-4b-it", "me/qwen2-vl-and-qwen3-vl"),
    ],
)
def test_an_unknown_release_a_size_and_two_families_are_no_family(model: str) -> None:
    assert find_family(model) is None


def test_a_relative_folder_is_recognized_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "models" / "medgemma-4b-it", "gemma3", "", _name_or_path="google/medgemma-1.5-4b-it")
    assert find_family("models/medgemma-4b-it") == "medgemma-1"
    monkeypatch.chdir(tmp_path)
    assert find_family("models/medgemma-4b-it") == "medgemma-1.5"
