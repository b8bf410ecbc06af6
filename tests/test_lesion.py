"""Lesions: rows of every layout, crops, prompts and targets, the parser, and rewards against oracles."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isic_challenge_scoring.confusion import create_binary_confusion_matrix  # type: ignore[import-untyped]
from isic_challenge_scoring.metrics import (  # type: ignore[import-untyped]
    binary_dice,
    binary_jaccard,
    binary_threshold_jaccard,
)
from PIL import Image

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data.columns import RowSettings, resolve_columns
from toolkit.data.sample import Answer, Sample
from toolkit.data.sample_set import balance
from toolkit.errors import NOTHING, DataError, RowProblem
from toolkit.images import ImagePolicy, load
from toolkit.recipe import Recipe
from toolkit.scoring.regions import GRIDS, mask_iou, read_mask
from toolkit.tasks import TASKS, RowOrigin
from toolkit.tasks.lesion.diagnoses import HAM10000, NEGATED, SEVERAL, UNKNOWN, Label, load_labels
from toolkit.tasks.lesion.parse import (
    BOX_MALFORMED,
    BRACKETS,
    LOCATION_UNKNOWN,
    NO_PARTS,
    POLYGON_MALFORMED,
    TAG_UNPAIRED,
)
from toolkit.tasks.lesion.rewards import WHY, reference_mask
from toolkit.tasks.lesion.schema import lesion_settings

LESION = TASKS["lesion"]
ROOT = Path("/data")
ROW: dict[str, Any] = {
    "lesion_id": "HAM_1",
    "image_id": "ISIC_1",
    "dx": "mel",
    "age": 61.0,
    "sex": "male",
    "localization": "back",
    "dataset": "rosendahl",
    "image": "a/ISIC_1.jpg",
    "mask": None,
    "width": 600,
    "height": 450,
    "bbox": [60, 45, 240, 180],
    "boxes": [[60, 45, 240, 180]],
    "polygons": [[[60, 45], [239, 45], [239, 179], [60, 179]]],
}
TWO = {**ROW, "boxes": [[60, 45, 240, 180], [400, 300, 500, 400]], "polygons": []}


def recipe(folder: Path = ROOT, model: str = "Qwen/Qwen2-VL-2B-Instruct", data: Any = None, **lesion: Any) -> Recipe:
    table = {
        "task": "lesion",
        "train": str(folder / "train.json"),
        "boxes": "xyxy",
        "lesion": lesion,
        **(data or {}),
    }
    return make_recipe({"run": {"name": "r"}, "model": {"name": model}, "data": table, "evaluate": {}})


def read(row: dict[str, Any], root: Path = ROOT, model: str = "Qwen/Qwen2-VL-2B-Instruct", **lesion: Any) -> Sample:
    columns, _ = resolve_columns(LESION, RowSettings({}), list(row))
    made = lesion_settings(recipe(model=model, **lesion), "train")
    return LESION.read("r1", row, RowOrigin(root / "rows.json", root, columns, settings=made))


def value(score: float | None) -> float:
    """Return a score that applies."""
    assert score is not None
    return score


def rewards(sample: Sample, completion: str) -> dict[str, float | None]:
    answer = LESION.parse(completion, sample)
    return {name: reward(sample, answer) for name, reward in LESION.rewards.items()}


ALL = ("diagnosis", "location", "bbox", "polygon")


def test_a_prepared_row_becomes_a_question_and_an_answer_in_the_models_coordinates() -> None:
    sample = read(ROW)
    assert (sample.group, sample.images[0].path) == ("HAM_1", Path("/data/a/ISIC_1.jpg"))
    # 60 / 600, 45 / 450, 240 / 600, 180 / 450 of 1000. The centre (150, 112.5) is in the upper left third.
    assert LESION.target(sample) == (
        "<diagnosis>melanoma</diagnosis> <location>upper-left</location> <bbox>[100, 100, 400, 400]</bbox>"
    )
    assert "from 0 to 1000" in LESION.instruction(sample)
    assert (sample.fields["age_band"], sample.fields["site"], sample.fields["sex"]) == ("60-74", "back", "male")
    assert not {"mel", "melanoma"} & set(LESION.question(sample).split())


@pytest.mark.parametrize(
    ("model", "box", "span"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "[100, 100, 400, 400]", "1000"),
        # 600 x 450 becomes 588 x 448 pixels (multiples of 28): 0.1 x 588 = 58.8, 0.1 x 448 = 44.8, …
        ("Qwen/Qwen2.5-VL-3B-Instruct", "[59, 45, 235, 179]", "588"),
        # Padded to a square of 600: y 45 and 180 become 120 and 255.
        ("google/medgemma-4b-it", "[100, 200, 400, 425]", "1000"),
        ("google/medgemma-1.5-4b-it", "[200, 100, 425, 400]", "1000"),
        ("tiny", "[10, 10, 40, 40]", "100"),
    ],
)
def test_each_model_family_gets_its_own_coordinates(model: str, box: str, span: str) -> None:
    sample = read(ROW, model=model)
    assert f"<bbox>{box}</bbox>" in LESION.target(sample)
    assert f"x from 0 to {span}" in LESION.instruction(sample)
    assert value(rewards(sample, LESION.target(sample))["box_iou"]) > 0.97


def test_medgemma_1_5_names_y_first() -> None:
    sample = read({**ROW, "boxes": [[60, 45, 300, 180]]}, model="google/medgemma-1.5-4b-it")
    # x 60 and 300, and y 45 + 75 and 180 + 75, of a square of 600
    assert "<bbox>[200, 100, 425, 500]</bbox>" in LESION.target(sample)
    assert "<bbox>[y1, x1, y2, x2]</bbox>" in LESION.instruction(sample)
    assert rewards(sample, LESION.target(sample))["box_iou"] == 1


def test_paligemma_names_location_tokens() -> None:
    sample = read(ROW, model="google/paligemma2-3b-mix-448", answer=("bbox",))
    # 1024 x 0.1 = 102.4 and 1024 x 0.4 = 409.6
    assert LESION.target(sample) == "<bbox><loc0102><loc0102><loc0410><loc0410></bbox>"
    assert value(rewards(sample, LESION.target(sample))["box_iou"]) > 0.99


def test_only_parts_that_a_row_has_are_requested() -> None:
    stage1 = {
        "image_name": "m.jpg",
        "diagnosis": "Melanoma",
        "location": "Upper left quadrant",
        "size": "1.5cm diameter",
        "features": "irregular_borders, asymmetric_shape",
        "concerning_features": ["asymmetry", "irregular_borders"],
        "width": 10,
        "height": 10,
    }
    parts = ("diagnosis", "location", "size", "features", "bbox")
    sample = read(stage1, answer=parts)
    assert sample.fields["requested"] == ("diagnosis", "location", "size", "features")
    assert LESION.target(sample) == (
        "<diagnosis>melanoma</diagnosis> <location>upper-left</location> <size>1.5cm diameter</size> "
        "<features>irregular borders, asymmetric shape, asymmetry</features>"
    )
    bare = read({key: stage1[key] for key in ("image_name", "diagnosis", "width", "height")}, answer=parts)
    assert LESION.target(bare) == "<diagnosis>melanoma</diagnosis>"
    assert (rewards(bare, "x")["place"], rewards(bare, "x")["box_iou"], rewards(bare, "x")["mask_iou"]) == (None,) * 3
    assert sample.group == "m.jpg"
    assert read({**stage1, "patient_id": "P", "lesion_id": "L"}, answer=parts).group == "P"


def test_the_layout_of_stage_2_is_read() -> None:
    row = {"image_name": "m.jpg", "diagnosis": "mel", "bbox": "[150, 200, 300, 350]", "confidence": 0.9}
    sample = read({**row, "width": 600, "height": 450})
    assert sample.reference["boxes"] == [[150, 200, 300, 350]]
    assert sample.reference["places"] == [[1, 1]]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dx": "lupus"}, "tasks.lesion.diagnosis_unknown"),
        ({"boxes": "[[1, 2, 3]]"}, "data.box_malformed"),
        ({"boxes": [[1, 2, 3, "four"]]}, "data.box_malformed"),
        ({"boxes": "everywhere"}, "data.boxes_not_list"),
        ({"boxes": [[10, 10, 10, 40]]}, "data.box_without_area"),
        ({"boxes": [[240, 180, 60, 45]]}, "data.box_reversed"),
        ({"boxes": [[-5, 45, 240, 500]]}, "data.box_outside_image"),
        ({"boxes": [[0.25, 0.25, 0.5, 0.75]]}, "data.box_is_fraction"),
        ({"boxes": [[700, 10, 800, 40]]}, "data.box_outside_image"),
        ({"polygons": [[[1, 2], [3]]]}, "tasks.lesion.polygons_malformed"),
        ({"polygons": "outline"}, "tasks.lesion.polygons_malformed"),
        ({"polygons": [[[1, 2], [3, 4]]]}, "tasks.lesion.polygons_malformed"),
        ({"polygons": [[[0.1, 0.2], [0.5, 0.2], [0.3, 1]]]}, "tasks.lesion.polygon_is_fraction"),
        ({"polygons": [[[1, 2], [900, 2], [30, 40]]]}, "tasks.lesion.polygon_outside_image"),
        ({"mask": "nowhere.png"}, "tasks.lesion.mask_missing"),
        ({"mask": "../secret.png"}, "tasks.lesion.mask_outside_root"),
        ({"image": ""}, "data.image_path_missing"),
        ({"width": "wide"}, "data.image_size_not_number"),
        ({"width": None}, "data.image_size_unknown"),
        ({"dx": "", "boxes": None, "bbox": None, "polygons": None}, "tasks.lesion.answer_parts_missing"),
    ],
)
def test_unusable_rows_are_rejected_with_their_reason(change: dict[str, Any], code: str) -> None:
    with raises(RowProblem, code):
        read({**ROW, **change})


def test_an_unknown_diagnosis_is_shown_with_the_key_of_the_table_of_labels() -> None:
    with raises(RowProblem, "tasks.lesion.diagnosis_unknown") as caught:
        read({**ROW, "dx": "squamous cell carcinoma"})
    assert caught.problem.value == "squamous cell carcinoma"
    assert "data.lesion.labels" in caught.problem.remedy


def test_each_outline_of_a_row_is_a_line_of_the_answer() -> None:
    outlines = [[[10, 10], [60, 10], [60, 60]], [[100, 100], [150, 100], [150, 150]]]
    row = {"image": "i.png", "dx": "nv", "polygons": outlines, "width": 600, "height": 450}
    sample = read(row, answer=("diagnosis", "polygon"))
    lesions = LESION.parse(LESION.target(sample), sample).values["lesions"]
    assert np.allclose([one["polygon"] for one in lesions], outlines, atol=0.5)
    with raises(RowProblem, "tasks.lesion.polygons_and_boxes_differ"):
        read({**row, "boxes": [[10, 10, 60, 60]]}, answer=("bbox", "polygon"))


def test_objects_after_the_first_json_are_reported() -> None:
    sample = read(TWO)
    one = '{"diagnosis": "melanoma", "location": "upper-left", "bbox": [10, 10, 20, 20]}'
    assert LESION.parse(f"[{one}, {one}]", sample).values["unread"] == []
    for text in (f"{one} {one}", f'[{one}, {{"diagno'):
        answer = LESION.parse(text, sample)
        assert (len(answer.values["lesions"]), len(answer.values["unread"])) == (1, 1)


def test_a_box_may_leave_its_image_by_a_rounding_pixel() -> None:
    assert read({**ROW, "boxes": [[-1, 45, 240, 450.5]]}).reference["boxes"] == [[0, 45, 240, 450]]


def test_several_lesions_have_one_line_each() -> None:
    sample = read(TWO)
    first, second = LESION.target(sample).split("\n")
    assert "<location>upper-left</location> <bbox>[100, 100, 400, 400]</bbox>" in first
    assert "<location>lower-right</location> <bbox>[667, 667, 833, 889]</bbox>" in second
    assert value(rewards(sample, LESION.target(sample))["box_iou"]) > 0.97
    # One of two lesions found: half. Two found and one invented: two thirds.
    assert rewards(sample, first)["box_iou"] == 0.5
    assert rewards(sample, first)["place"] == 0.5
    extra = f"{LESION.target(sample)}\n<bbox>[0, 0, 50, 50]</bbox>"
    both = value(rewards(sample, LESION.target(sample))["box_iou"])
    assert rewards(sample, extra)["box_iou"] == pytest.approx(both * 2 / 3)


@pytest.mark.parametrize("parts", [ALL, ("diagnosis",), ("bbox",), ("polygon", "location")])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("model", ["tiny", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_the_reference_answer_earns_every_reward(parts: tuple[str, ...], grid: int, model: str) -> None:
    sample = read(ROW, answer=parts, grid=grid, model=model)
    found = rewards(sample, LESION.target(sample))
    assert found["format"] == 1
    assert all(value is None or value > 0.9 for value in found.values())
    assert found["diagnosis"] == (1.0 if "diagnosis" in parts else None)
    assert set(WHY) == set(LESION.rewards)
    answer = LESION.parse(LESION.target(sample), sample)
    assert all(isinstance(why(sample, answer), str) for why in WHY.values())


BOX = [60.0, 45.0, 240.0, 180.0]


@pytest.mark.parametrize(
    "text",
    [
        "<bbox>[100, 100, 400, 400]</bbox>",
        "<bbox>100,100,400,400</bbox>",
        "<bbox>( 100.0 , 100.0 , 400.0 , 400.0 )</bbox>",
        "<bbox>[400, 400, 100, 100]</bbox>",
        "<BBOX>\n[100,\n100, 400, 400]\n</BBOX>",
        "```\n<bbox>[100, 100, 400, 400]</bbox>\n```",
        '```json\n{"bbox": [100, 100, 400, 400]}\n```',
        'Here it is: [{"bbox_2d": [100, 100, 400, 400], "label": "melanoma"}]',
        '{"lesions": [{"box": "[100, 100, 400, 400]"}]}',
        "<bbox>[1e2, 100, 4e2, 400]</bbox>",
    ],
)
def test_boxes_are_parsed_in_every_usual_format(text: str) -> None:
    (lesion,) = LESION.parse(text, read(ROW)).values["lesions"]
    assert lesion["box"] == pytest.approx(BOX)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", NO_PARTS),
        ("a melanoma", NO_PARTS),
        ("<bbox>[100, 100, 400]</bbox>", BOX_MALFORMED),
        ("<bbox>[100, 100, 400, 400, 500]</bbox>", BOX_MALFORMED),
        ("<bbox>[100, 100, 100, 400]</bbox>", BOX_MALFORMED),
        ("<bbox>__import__('os')</bbox>", BOX_MALFORMED),
        ("<bbox>[100*2, 100, 400, 400]</bbox>", BOX_MALFORMED),
        ("<bbox>[nan, 1, 2, 3]</bbox>", BOX_MALFORMED),
        ("<bbox>[1e999, 1, 2, 3]</bbox>", BOX_MALFORMED),
        ("<bbox>[100, 100, 400, 4", TAG_UNPAIRED.format(tag="<bbox>")),
        ("<polygon>[[1, 2], [3, 4]]</polygon>", POLYGON_MALFORMED),
        ("<location>on the back</location>", LOCATION_UNKNOWN),
        ("<diagnosis>a rash</diagnosis>", UNKNOWN),
        ("<diagnosis>melanoma or nevus</diagnosis>", SEVERAL),
        ("<diagnosis>no melanoma</diagnosis>", NEGATED),
        ('{"bbox": ', NO_PARTS),
        ("[" * 5000, BRACKETS),
        ("<diagnosis><bbox>" * 10000, TAG_UNPAIRED.format(tag="<diagnosis>")),
    ],
)
def test_an_unparsed_answer_has_a_problem_and_no_reward(text: str, problem: str) -> None:
    answer = LESION.parse(text, read(ROW))
    assert answer.problem == problem
    assert set(rewards(read(ROW), text).values()) == {0.0}


def test_an_unparsed_part_leaves_the_others() -> None:
    sample = read(ROW)
    answer = LESION.parse("<diagnosis>nevus</diagnosis> <location>somewhere</location>", sample)
    assert (answer.problem, answer.values["diagnosis"]) == (None, "nv")
    assert answer.values["unread"] == [LOCATION_UNKNOWN]
    assert LESION.rewards["format"](sample, answer) == 0
    json.dumps(answer.values)


def test_a_list_of_every_class_is_no_diagnosis() -> None:
    sample = read(ROW)
    every = ", ".join(label.name for label in HAM10000.labels)
    assert rewards(sample, f"<diagnosis>{every}</diagnosis>")["diagnosis"] == 0
    lines = "\n".join(f"<diagnosis>{label.name}</diagnosis>" for label in HAM10000.labels)
    assert rewards(sample, lines)["diagnosis"] == 0
    assert LESION.labels(sample, LESION.parse(lines, sample)) == ("mel", None)


@pytest.mark.parametrize("label", HAM10000.labels, ids=lambda label: label.code)
def test_every_synonym_counts(label: Label) -> None:
    for name in (label.code, label.name, *label.synonyms, label.name.upper(), f"It is a {label.name}."):
        assert HAM10000.read(name) == (label.code, None)


def test_the_longest_name_in_a_text_decides() -> None:
    assert HAM10000.read("benign keratosis-like lesion, such as a seborrheic keratosis") == ("bkl", None)
    assert HAM10000.read("actinic keratosis") == ("akiec", None)
    assert HAM10000.read("keratosis")[0] is None


def test_a_table_of_labels_replaces_that_of_ham10000_and_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "labels.toml"
    file.write_text('[[label]]\ncode = "scc"\nname = "squamous cell carcinoma"\nsynonyms = ["SCC in situ"]\n')
    sample = read({**ROW, "dx": "Squamous cell carcinoma"}, labels=str(file))
    assert rewards(sample, "<diagnosis>SCC in situ</diagnosis>")["diagnosis"] == 1
    for text, code, place, expected in (
        ("x = [", "labels_not_readable", "", None),
        ("", "labels_empty", "", NOTHING),
        ('[[label]]\ncode = "a"\n', "label_incomplete", ", label 1", {"code": "a"}),
        (
            '[[label]]\ncode = "a"\nname = "b"\n[[label]]\ncode = "b"\nname = "c"\n',
            "label_name_repeated",
            "",
            "b",
        ),
    ):
        file.write_text(text)
        with raises(DataError, f"tasks.lesion.{code}") as caught:
            load_labels(file)
        assert caught.problem.place == f"{file}{place}"
        assert expected is None or caught.problem.value == expected


@given(st.text(max_size=80) | st.text("<>/bboxdiagnosisplygn[]{}(),:\"'0123456789.-e \n", max_size=120))
@settings(max_examples=300, deadline=None)
def test_the_parser_returns_lesions_or_a_problem_for_any_text(text: str) -> None:
    sample = read(ROW)
    answer = LESION.parse(text, sample)
    assert (answer.problem is None) == bool(answer.values)
    for name, reward in LESION.rewards.items():
        found = reward(sample, answer)
        assert found is None or 0 <= found <= 1, name
    json.dumps(answer.values, allow_nan=False)


def written(folder: Path, seed: int = 0, size: tuple[int, int] = (120, 90)) -> dict[str, Any]:
    """Return an image with a mask on disk, and its row."""
    noise = np.random.default_rng(seed).normal(size=size[::-1]).astype(np.float32)
    mask = cv2.GaussianBlur(noise, (0, 0), 12) > 0.02
    cv2.imwrite(str(folder / "m.png"), mask.astype(np.uint8) * 255)
    ramp = np.indices(size[::-1]).sum(0).astype(np.uint8)
    cv2.imwrite(str(folder / "i.png"), np.dstack([ramp, mask.astype(np.uint8) * 200, ramp]))
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
    return {"image": "i.png", "mask": "m.png", "dx": "nv", "boxes": [box], "width": size[0], "height": size[1]}


@pytest.mark.parametrize("name", ["m", "M.PNG", "./m.png"])
def test_a_mask_is_found_as_images_are(tmp_path: Path, name: str) -> None:
    row = written(tmp_path)
    assert read({**row, "mask": name}, tmp_path).reference["mask"] == str(tmp_path / "m.png")


def test_how_a_mask_was_found_is_counted_and_shown(tmp_path: Path) -> None:
    row = written(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "mask": "M"}]))
    table = {"task": "lesion", "train": str(tmp_path / "rows.json"), "split": {"test": 0.0}, "boxes": "xyxy"}
    data = load_data(make_recipe({"run": {"name": "r"}, "data": table, "sft": {}}))
    shown = {one.code: str(one) for one in data.warnings}
    assert {"data.image_suffix_added", "data.image_case_changed"} <= set(shown)
    assert "1 row" in shown["data.image_case_changed"]
    assert "row 0, mask" in shown["data.image_case_changed"]


@pytest.mark.parametrize("seed", range(8))
def test_mask_iou_jaccard_and_dice_are_those_of_the_isic_challenge(tmp_path: Path, seed: int) -> None:
    sample = read(written(tmp_path, seed), tmp_path, coordinates="pixels", answer=("bbox",))
    random = np.random.default_rng(seed)
    x1, y1 = random.integers(0, 40, 2)
    x2, y2 = random.integers(60, 90, 2)
    drawn = np.zeros((90, 120), np.uint8)
    drawn[y1:y2, x1:x2] = 255
    truth = read_mask(tmp_path / "m.png").astype(np.uint8) * 255
    oracle = create_binary_confusion_matrix(truth > 128, drawn > 128)
    found = LESION.scores(sample, LESION.parse(f"<bbox>[{x1}, {y1}, {x2}, {y2}]</bbox>", sample))
    assert found["mask_iou"] == pytest.approx(binary_jaccard(oracle))
    assert found["dice"] == pytest.approx(binary_dice(oracle))
    assert found["thresholded_jaccard"] == pytest.approx(binary_threshold_jaccard(oracle, 0.65))


def test_a_mask_of_another_size_is_scaled_and_of_another_aspect_ratio_rejected(tmp_path: Path) -> None:
    row = written(tmp_path)
    sample = read({**row, "width": 240, "height": 180, "boxes": None}, tmp_path, answer=("diagnosis", "bbox"))
    half = cv2.resize(read_mask(tmp_path / "m.png").astype(np.uint8), (240, 180), interpolation=cv2.INTER_NEAREST)
    mask = reference_mask(sample)
    assert mask is not None
    assert np.array_equal(mask, half.astype(bool))
    odd = read({**row, "width": 90, "boxes": None}, tmp_path)
    with raises(DataError, "rewards.mask_aspect_ratio_differs") as caught:
        reference_mask(odd)
    assert caught.problem.place == str(tmp_path / "m.png")


@pytest.mark.parametrize("name", [f"r{number}" for number in range(12)])
def test_a_crop_moves_image_mask_box_and_outline_together(tmp_path: Path, name: str) -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[20:50, 30:70] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    cv2.imwrite(str(tmp_path / "i.png"), np.dstack([mask] * 3))
    row = {"image": "i.png", "mask": "m.png", "dx": "nv", "boxes": [[30, 20, 70, 50]], "width": 120, "height": 90}
    row["polygons"] = [[[30, 20], [69, 20], [69, 49], [30, 49]]]
    columns, _ = resolve_columns(LESION, RowSettings({}), list(row))
    made = lesion_settings(recipe(crop=0.5), "train")
    sample = LESION.read(name, row, RowOrigin(tmp_path / "rows.json", tmp_path, columns, settings=made))
    crop = sample.images[0].crop
    assert crop is not None
    width, height = sample.fields["size"]
    assert (crop[2] - crop[0], crop[3] - crop[1]) == (width, height)
    assert width >= 60
    assert height >= 45
    (box,) = sample.reference["boxes"]
    shown = np.asarray(load(sample.images[0], ImagePolicy()).image)[..., 0] > 128
    ys, xs = np.nonzero(shown)
    # The image is not reduced, so the white square is exactly at the moved box.
    assert [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] == box
    moved = reference_mask(sample)
    assert moved is not None
    assert np.array_equal(moved, shown)
    assert value(rewards(sample, LESION.target(sample))["mask_iou"]) > 0.95
    assert sample == LESION.read(name, row, RowOrigin(tmp_path / "rows.json", tmp_path, columns, settings=made))


def test_crops_put_centred_lesions_anywhere() -> None:
    row = {**ROW, "boxes": [[250, 190, 350, 260]], "polygons": None}
    made = lesion_settings(recipe(crop=0.5), "train")
    columns, _ = resolve_columns(LESION, RowSettings({}), list(row))
    origin = RowOrigin(ROOT / "rows.json", ROOT, columns, settings=made)
    places = {tuple(LESION.read(f"r{n}", row, origin).reference["places"][0]) for n in range(200)}
    assert len(places) == 9
    assert {tuple(read(row).reference["places"][0])} == {(1, 1)}


def test_only_the_chosen_splits_are_cropped_and_a_crop_has_no_area_in_percent() -> None:
    train, test = (lesion_settings(recipe(crop=0.5), split) for split in ("train", "test"))
    assert (train.crop, test.crop) == (0.5, 1.0)
    both = recipe(crop=0.5, crop_splits=("train", "test"))
    assert lesion_settings(both, "test").crop == 0.5
    row = {**ROW, "size": "12.0 % of the image"}
    assert read(row, answer=("size", "bbox")).reference["size"] == "12.0 % of the image"
    assert read(row, answer=("size", "bbox"), crop=0.5).reference["size"] is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_is_taken_from_the_upright_image(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "i.png", exif=exif)
    from toolkit.images.ref import ImageRef

    whole = np.asarray(load(ImageRef(tmp_path / "i.png"), ImagePolicy()).image)
    part = load(ImageRef(tmp_path / "i.png", crop=(5, 7, 30, 37)), ImagePolicy())
    assert np.array_equal(np.asarray(part.image), whole[7:37, 5:30])
    assert part.record.source_size == (25, 30)


def test_the_baseline_is_the_most_frequent_answer_with_the_median_box() -> None:
    rows = [{**ROW, "dx": dx, "boxes": [[0, 0, x, 45]]} for dx, x in (("nv", 60), ("nv", 120), ("mel", 600))]
    complete = LESION.baseline([read(row) for row in rows])
    # Edges: 0, 0, the median of 0.1, 0.2 and 1, and 0.1.
    assert complete(read(ROW)) == (
        "<diagnosis>melanocytic nevus</diagnosis> <location>upper-left</location> <bbox>[0, 0, 200, 100]</bbox>"
    )
    assert complete(read({**ROW, "width": 1200, "height": 900})).endswith("[0, 0, 200, 100]</bbox>")


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "train.json").write_text(json.dumps(rows))


def test_a_file_of_rows_is_split_by_lesion_and_unusable_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        {**ROW, "lesion_id": f"L{n // 3}", "image": f"{n}.jpg", "dx": "lupus" if n == 5 else "nv"} for n in range(60)
    ]
    write_rows(tmp_path, rows)
    data = load_data(recipe(tmp_path, data={"split": {"test": 0.3}}))
    train, test = ({sample.group for sample in part} for part in (data.train, data.test))
    assert not train & test
    assert len(data.train) + len(data.test) == 59
    assert (data.dropped[0].code, data.dropped[0].count) == ("tasks.lesion.diagnosis_unknown", 1)


def test_held_out_rows_are_read_with_the_settings_of_their_split(tmp_path: Path) -> None:
    write_rows(tmp_path, [{**ROW, "lesion_id": f"L{n}", "image": f"{n}.jpg"} for n in range(20)])
    data = load_data(recipe(tmp_path, data={"split": {"test": 0.3}}, crop=0.5))
    assert all(sample.images[0].crop is not None for sample in data.train)
    assert all(sample.images[0].crop is None for sample in data.test)
    other = load_data(recipe(tmp_path, data={"split": {"test": 0.3}}, crop=0.6))
    assert other.fingerprint != data.fingerprint


def test_balanced_sampling_draws_classes_and_lesions_evenly(tmp_path: Path) -> None:
    # 90 nevi of 30 lesions (three images each), 8 melanomas of 2 lesions (one with 7 images), 2 vascular lesions.
    names = [("nv", f"n{n // 3}") for n in range(90)] + [("mel", "a")] * 7 + [("mel", "b")] + [("vasc", "c")] * 2
    rows = [{**ROW, "dx": dx, "lesion_id": lesion, "image": f"{n}.jpg"} for n, (dx, lesion) in enumerate(names)]
    write_rows(tmp_path, rows)
    data = load_data(recipe(tmp_path, data={"split": {"test": 0.0}}).model_copy(update={"evaluate": None}))
    stratum = LESION.stratum
    assert stratum is not None
    balanced, counts = balance(data.train, stratum, seed=1)
    assert counts == {"nv": (90, 34), "mel": (8, 33), "vasc": (2, 33)}
    drawn = [(sample.reference["diagnosis"], sample.group) for sample in balanced]
    assert len(drawn) == 100
    assert sorted(drawn.count(("mel", lesion)) for lesion in "ab") == [16, 17]
    assert {drawn.count(("nv", f"n{n}")) for n in range(30)} == {1, 2}
    assert [sample.id for sample in balance(data.train, stratum, seed=1)[0]] == [s.id for s in balanced]
    assert [sample.id for sample in balance(data.train, stratum, seed=2)[0]] != [s.id for s in balanced]


def test_mask_iou_agrees_with_a_mask_drawn_from_polygons() -> None:
    sample = read({**ROW, "mask": None}, answer=("polygon",), coordinates="pixels")
    square = "<polygon>[[60, 45], [239, 45], [239, 179], [60, 179]]</polygon>"
    assert rewards(sample, square)["mask_iou"] == 1
    # A triangle over half of the square.
    half = rewards(sample, "<polygon>[[60, 45], [239, 45], [60, 179]]</polygon>")
    assert half["mask_iou"] == pytest.approx(0.5, abs=0.01)
    assert half["box_iou"] == 1
    empty = replace(sample, reference={**sample.reference, "polygons": [], "mask": None})
    assert LESION.rewards["mask_iou"](empty, Answer("", {})) == 0
    assert mask_iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 0
