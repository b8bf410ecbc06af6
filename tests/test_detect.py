"""Detection: rows, prompts and targets of every family, the parser, rewards, and mAP against pycocotools."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data.loading import DataSplits
from toolkit.data.sample import Answer, Sample
from toolkit.errors import DataError
from toolkit.recipe import SyntheticData
from toolkit.scoring.regions import Labelled, detection_metrics, match_image, order_box
from toolkit.scoring.regions.box_lists import CUT_OFF, DAMAGED, MALFORMED, NO_BOX, NO_LABEL, NO_LIST, TOO_MANY
from toolkit.tasks import TASKS
from toolkit.tasks.detect.parse import UNKNOWN
from toolkit.tasks.detect.rewards import EXAMPLE, REWARDS

DETECT = TASKS["detect"]
ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "boxes": [[300, 200, 500, 400], [10, 20, 110, 220]], "labels": ["nodule", "effusion"]},
    {"image": "b.png", "boxes": [[0, 0, 1000, 500]], "labels": ["effusion"]},
    {"image": "c.png", "boxes": [], "labels": []},
]
SIZE = {"width": 1000, "height": 500}


def load(folder: Path, rows: Sequence[Any] = ROWS, model: str = "Qwen/Qwen3-VL-8B-Instruct", **data: Any) -> DataSplits:
    (folder / "rows.json").write_text(json.dumps([{**SIZE, **row} for row in rows]))
    table = {"task": "detect", "train": str(folder / "rows.json"), "boxes": "xyxy", "split": {"test": 0.0}, **data}
    return load_data(make_recipe({"run": {"name": "r"}, "model": {"name": model}, "data": table, "sft": {}}))


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """Return a sample with two boxes, for a model that writes 0 to 1000, x first."""
    return load(tmp_path).train[0]


@pytest.mark.parametrize(
    ("model", "target", "empty"),
    [
        (
            "google/medgemma-1.5-4b-it",  # the image of 1000 x 500 is padded to a square of 1000
            '[{"box_2d": [270, 10, 470, 110], "label": "effusion"}, '
            '{"box_2d": [450, 300, 650, 500], "label": "nodule"}]',
            "[]",
        ),
        (
            "Qwen/Qwen3-VL-8B-Instruct",
            '[{"bbox_2d": [10, 40, 110, 440], "label": "effusion"}, '
            '{"bbox_2d": [300, 400, 500, 800], "label": "nodule"}]',
            "[]",
        ),
        (
            "google/paligemma2-3b-mix-448",  # of 1024
            "<loc0041><loc0010><loc0451><loc0113> effusion ; <loc0410><loc0307><loc0819><loc0512> nodule",
            "none",
        ),
        ("tiny", "effusion <bbox>[1, 4, 11, 44]</bbox>\nnodule <bbox>[30, 40, 50, 80]</bbox>", "none"),
    ],
)
def test_each_family_gets_its_own_format_from_top_to_bottom(
    tmp_path: Path, model: str, target: str, empty: str
) -> None:
    train = load(tmp_path, model=model).train
    first, _, last = train
    assert (DETECT.target(first), DETECT.target(last)) == (target, empty)
    for one in train:
        assert DETECT.scores(one, DETECT.parse(DETECT.target(one), one))["f1"] == 1
    assert "effusion, nodule" in DETECT.instruction(first)


def test_classes_are_those_of_the_training_rows(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(
        json.dumps([{**SIZE, "image": "t.png", "bbox": [1, 2, 30, 40], "label": "mass"}])
    )
    data = load(tmp_path, test=str(tmp_path / "test.json"))
    assert data.train[0].fields["classes"] == data.test[0].fields["classes"] == ("effusion", "nodule")
    notes = {one.code: one for one in data.warnings}
    assert "mass" in str(notes["tasks.detect.class_not_in_train"].value)
    assert notes["tasks.detect.class_not_in_train"].place == "test"
    listed = load(tmp_path, detect={"classes": ["nodule", "effusion", "mass"]})
    assert listed.train[0].fields["classes"] == ("nodule", "effusion", "mass")
    assert {one.code: one.value for one in listed.warnings}["tasks.detect.class_without_boxes"] == ["mass"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"boxes": [[1, 2, 3, 4]], "labels": []}, "tasks.detect.labels_and_boxes_differ"),
        ({"boxes": [[1, 2, 30, 40], [1, 2, 30, 40]], "labels": ["nodule"]}, "tasks.detect.labels_and_boxes_differ"),
        ({"boxes": [[1, 2, 30, 40]], "labels": [None]}, "tasks.detect.label_missing"),
        ({"boxes": None, "labels": None}, "tasks.detect.boxes_missing"),
        ({"boxes": None, "labels": "nodule"}, "tasks.detect.labels_and_boxes_differ"),
        ({"boxes": [[0, 0, 1, 1]], "labels": ["No finding"]}, "tasks.detect.box_without_finding"),
        ({"boxes": [[1, 2, 30, 40]], "labels": [["a", "b"]]}, "data.value_not_text"),
        ({"boxes": [[900, 2, 1100, 40]], "labels": ["nodule"]}, "data.box_outside_image"),
        ({"image": "", "boxes": [], "labels": []}, "data.image_path_missing"),
        ({"width": 0, "boxes": [], "labels": []}, "data.image_size_not_number"),
        ({"height": -5, "boxes": [], "labels": []}, "data.image_size_not_number"),
    ],
)
def test_unusable_rows_are_counted_by_code(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    data = load(tmp_path, [*ROWS, {"image": "x.png", **row}], max_dropped=0.5)
    assert {one.code: one.count for one in data.dropped} == {code: 1}


@pytest.mark.parametrize(
    "row", [{"boxes": []}, {"boxes": "[]", "labels": ""}, {"boxes": None, "labels": "No Finding"}, {"bbox": []}]
)
def test_an_image_without_findings_is_a_row(tmp_path: Path, row: dict[str, Any]) -> None:
    train = load(tmp_path, [*ROWS, {"image": "x.png", **row}]).train
    assert (len(train), train[3].reference) == (4, {"labels": [], "boxes": []})


def test_a_box_without_an_area_in_the_coordinates_of_the_model_is_reported(tmp_path: Path) -> None:
    rows = [*ROWS, {"image": "d.png", "boxes": [[10, 10, 13, 40]], "labels": ["nodule"]}]
    assert "data.box_too_small" in {one.code for one in load(tmp_path, rows, "tiny").warnings}
    assert "data.box_too_small" not in {one.code for one in load(tmp_path, rows).warnings}


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": [[10, 20, 110, 220], [1, 2, 30, 40]], "category": ["mass", "nodule"]},
        [{"bbox": [10, 20, 110, 220], "label": "mass"}, {"bbox": [1, 2, 30, 40], "label": "nodule"}],
    ],
)
def test_objects_of_datasets_on_the_hub_are_read(tmp_path: Path, objects: Any) -> None:
    rows = [{"image": "a.png", "objects": objects}, {"image": "b.png", "objects": {"bbox": [], "category": []}}]
    first, second = load(tmp_path, rows).train
    assert first.reference == {"labels": ["mass", "nodule"], "boxes": [[10, 20, 110, 220], [1, 2, 30, 40]]}
    assert second.reference == {"labels": [], "boxes": []}


def test_a_repeated_box_is_reported(tmp_path: Path) -> None:
    box = [10, 20, 110, 220]
    twice = {"image": "d.png", "boxes": [box, box], "labels": ["nodule", "nodule"]}
    other = {"image": "e.png", "boxes": [box, box], "labels": ["nodule", "effusion"]}
    for rows, count in (([*ROWS, other], 0), ([*ROWS, other, twice], 1)):
        codes = [one.code for one in load(tmp_path, rows).warnings]
        assert codes.count("tasks.detect.box_repeated") == count


def test_two_rows_of_one_image_stop_the_run(tmp_path: Path) -> None:
    again = {"image": "b.png", "boxes": [[10, 20, 30, 40]], "labels": ["nodule"]}
    with raises(DataError, "tasks.detect.image_repeated"):
        load(tmp_path, [*ROWS, again])


def test_classes_that_differ_only_in_case_stop_the_run(tmp_path: Path) -> None:
    with raises(DataError, "tasks.detect.labels_alike"):
        load(tmp_path, [*ROWS, {"image": "d.png", "boxes": [[10, 20, 30, 40]], "labels": ["Nodule"]}])


FIRST = ("effusion", [10, 20, 110, 220])
SECOND = ("nodule", [300, 200, 500, 400])


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [10, 40, 110, 440], "label": "effusion"}, {"bbox_2d": [300, 400, 500, 800], "label": "nodule"}]',
        '```json\n[{"box_2d": [10, 40, 110, 440], "label": "Effusion"},\n'
        '{"bbox": [300, 400, 500, 800], "class": "NODULE"}]\n```',
        'Findings: {"objects": [{"label": "effusion", "bbox": [10, 40, 110, 440]}]} and '
        '{"label": "nodule", "box": "[300, 400, 500, 800]"}',
        "effusion <bbox>[10, 40, 110, 440]</bbox>\n- nodule: <bbox>(300, 400, 500, 800)</bbox>",
        "<diagnosis>effusion</diagnosis> <bbox>[10, 40, 110, 440]</bbox> nodule <bbox>[500, 800, 300, 400]</bbox>",
    ],
)
def test_boxes_are_parsed_in_every_usual_format(sample: Sample, text: str) -> None:
    answer = DETECT.parse(text, sample)
    assert answer.values["labels"] == [FIRST[0], SECOND[0]]
    assert np.allclose(answer.values["boxes"], [FIRST[1], SECOND[1]])
    assert DETECT.scores(sample, answer)["format"] == 1


@pytest.mark.parametrize("text", ["none", "[]", "No finding.", "```json\n[]\n```", " None\n"])
def test_no_finding_is_an_answer(sample: Sample, text: str) -> None:
    answer = DETECT.parse(text, sample)
    assert (answer.problem, answer.values["boxes"]) == (None, [])


WHOLE = '{"bbox_2d": [10, 40, 110, 440], "label": "effusion"}'


@pytest.mark.parametrize(
    ("text", "boxes", "unread"),
    [
        (f'[{WHOLE}, {{"bbox_2d": [300, 4', 1, [CUT_OFF]),
        (f"[{WHOLE}, ", 1, [CUT_OFF]),
        (f"[{WHOLE}", 1, [CUT_OFF]),
        (f"[{WHOLE}, {{", 1, [CUT_OFF]),
        (f'[{WHOLE}, {{"label": "nod', 1, [CUT_OFF]),
        (f'[{{"bbox_2d": [1, 2 3, 4], "label": "nodule"}}, {WHOLE}]', 1, [DAMAGED]),
        (f'[{{"bbox_2d": [1, 2, 3, 4], "label": "nodule",}}, {WHOLE}]', 1, [DAMAGED]),
        (f'[{WHOLE}, {{"label": "nodule"}}]', 1, [NO_BOX]),
        (f'[{WHOLE}, {{"bbox_2d": [1, 2, 3, {"9" * 400}], "label": "nodule"}}]', 1, [MALFORMED]),
        (f'[{WHOLE}, {{"bbox_2d": [1, 2, 3], "label": "nodule"}}]', 1, [MALFORMED]),
        (f'[{WHOLE}, {{"bbox_2d": [5, 5, 5, 9], "label": "nodule"}}]', 1, [MALFORMED]),
        (f'[{WHOLE}, {{"bbox_2d": [1, 2, 3, 4]}}]', 1, [NO_LABEL]),
        (f'[{WHOLE}, {{"bbox_2d": [1, 2, 3, 4], "label": "mass"}}]', 2, [UNKNOWN]),
        (f"[{', '.join([WHOLE] * 101)}]", 100, [TOO_MANY]),
        ("effusion <bbox>[10, 40, 110, 440]</bbox>\nnodule <bbox>[300, 4", 1, [CUT_OFF]),
        ("<loc0010><loc0040><loc0110><loc0440> effusion ; <loc0010><loc00", 1, [CUT_OFF]),
    ],
)
def test_unparsed_parts_are_reported(sample: Sample, text: str, boxes: int, unread: list[str]) -> None:
    answer = DETECT.parse(text, sample)
    assert (len(answer.values["boxes"]), answer.values["unread"]) == (boxes, unread)
    assert DETECT.scores(sample, answer)["format"] == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", NO_LIST),
        ("an effusion on the left", NO_LIST),
        ('[{"bbox_2d": [', CUT_OFF),
        ('{"bbox_2d": [1, 2, NaN, 4], "label": "nodule"}', MALFORMED),
        ('{"bbox_2d": "__import__(\'os\')", "label": "nodule"}', MALFORMED),
        ("{" * 5000, NO_LIST),
    ],
)
def test_an_answer_without_a_list_has_a_problem_and_no_score(sample: Sample, text: str, problem: str) -> None:
    answer = DETECT.parse(text, sample)
    assert answer.problem == problem
    assert {reward(sample, answer) for reward in REWARDS.values()} == {0.0}


@given(st.text(max_size=80) | st.text("<>/bboxlabelc[]{}(),:;\"'0123456789.-e \n", max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    frame = {"frame": _frame(), "classes": ("nodule",)}
    answer = DETECT.parse(text, Sample("e", "detect", "g", (), {**EXAMPLE.fields, **frame}, EXAMPLE.reference))
    assert answer.problem is not None or len(answer.values["labels"]) == len(answer.values["boxes"])


def _frame() -> Any:
    from toolkit.scoring.regions import COORDINATES, Frame

    return Frame((100, 100), (100, 100), COORDINATES["thousand"])


def test_without_known_classes_the_labels_of_the_row_are_compared(sample: Sample) -> None:
    alone = replace(sample, fields={**sample.fields, "classes": ()})
    answer = DETECT.parse(DETECT.target(sample).upper().replace("BBOX_2D", "bbox_2d").replace("LABEL", "label"), alone)
    assert DETECT.scores(alone, answer)["f1"] == DETECT.scores(alone, answer)["format"] == 1


def answer_of(*boxes: tuple[str, list[float]]) -> Answer:
    values = {"labels": [label for label, _ in boxes], "boxes": [box for _, box in boxes], "unread": []}
    return Answer("…", values)


def test_extra_boxes_and_wrong_classes_cost() -> None:
    right = [("nodule", [10.0, 10, 40, 40]), ("effusion", [50.0, 50, 90, 90])]
    assert {name: reward(EXAMPLE, answer_of(*right)) for name, reward in REWARDS.items()} == dict.fromkeys(REWARDS, 1.0)
    for worse in ([*right, right[0]], [("effusion", right[0][1]), right[1]], right[:1]):
        for name in ("f1", "iou", "count"):
            assert (REWARDS[name](EXAMPLE, answer_of(*worse)) or 0) < 1


def test_an_empty_answer_is_right_for_an_image_without_findings() -> None:
    bare = Sample("e", "detect", "g", (), EXAMPLE.fields, {"labels": [], "boxes": []})
    assert {reward(bare, answer_of()) for reward in REWARDS.values()} == {1.0}
    assert REWARDS["f1"](bare, answer_of(("nodule", [1, 1, 9, 9]))) == 0
    scores = DETECT.scores(bare, answer_of(("nodule", [1, 1, 9, 9])))
    assert (scores["no_finding_found"], scores["finding_found"]) == (0, None)
    assert DETECT.labels(bare, answer_of()) == ("no finding", "no finding")
    assert DETECT.labels(EXAMPLE, answer_of()) is None


def test_boxes_outside_the_image_are_counted() -> None:
    answer = answer_of(("nodule", [10, 10, 40, 40]), ("nodule", [10, 10, 140, 40]))
    assert DETECT.scores(EXAMPLE, answer)["inside"] == 0.5
    assert DETECT.scores(EXAMPLE, answer_of())["inside"] is None


def test_the_baseline_is_the_majority_class_at_its_mean_box(tmp_path: Path) -> None:
    train = load(tmp_path).train
    complete = DETECT.baseline(list(train))
    # effusion: [10, 20, 110, 220] and [0, 0, 1000, 500] of 1000 x 500
    assert complete(train[2]) == '[{"bbox_2d": [5, 20, 555, 720], "label": "effusion"}]'
    assert DETECT.baseline([train[2]] * 3)(train[0]) == "[]"


EDGE = st.integers(0, 60)
BOX = st.tuples(EDGE, EDGE, EDGE, EDGE).map(lambda b: order_box(*b)).filter(lambda b: b[0] < b[2] and b[1] < b[3])
LIST = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), BOX), max_size=6)


def coco_values(images: Sequence[tuple[Sequence[Labelled], Sequence[Labelled]]]) -> dict[str, float | None]:
    """Return pycocotools' AP for boxes with the scores 1, 1/2, 1/3, … in the order of their class in the answer."""
    names = ("a", "b", "c")

    def entry(number: int, image: int, name: str, box: Sequence[float], score: float) -> dict[str, Any]:
        x1, y1, x2, y2 = map(float, box)
        area = (x2 - x1) * (y2 - y1)
        return {
            "id": number,
            "image_id": image,
            "category_id": names.index(name) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
            "score": score,
        }

    truth, found = [], []
    for image, (references, answers) in enumerate(images, 1):
        truth += [(image, name, box, 1.0) for name, box in references]
        ranks = dict.fromkeys(names, 0)
        for name, box in answers:
            ranks[name] += 1
            found.append((image, name, box, 1 / ranks[name]))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": [entry(number, *one) for number, one in enumerate(truth, 1)],
    }
    coco.createIndex()
    results = coco.loadRes([entry(number, *one) for number, one in enumerate(found, 1)])
    evaluation = COCOeval(coco, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, classes
    valid = [k for k in range(3) if precision[0, 0, k] > -1]
    values: dict[str, float | None] = {"mAP": None, "mAP_50": None}
    if valid:
        values = {"mAP": float(precision[:, :, valid].mean()), "mAP_50": float(precision[0, :, valid].mean())}
    return values | {f"AP_50 {names[k]}": float(precision[0, :, k].mean()) for k in valid}


@given(
    st.lists(st.tuples(LIST, LIST), min_size=1, max_size=8).filter(lambda images: any(answers for _, answers in images))
)
@settings(max_examples=60, deadline=None)
def test_map_is_that_of_pycocotools(images: list[tuple[list[Labelled], list[Labelled]]]) -> None:
    ours = detection_metrics([match_image(references, answers) for references, answers in images])
    theirs = coco_values(images)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-12)
    assert {name for name in ours if name.startswith("AP_50")} == {name for name in theirs if name.startswith("AP_50")}


def test_map_of_jittered_boxes_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(60):
        references, answers = [], []
        for _ in range(rng.integers(0, 5)):
            corner, size = rng.uniform(0, 400, 2), rng.uniform(20, 200, 2)
            name, box = str(rng.choice(["a", "b", "c"])), (*corner, *(corner + size))
            references.append((name, box))
            moved = np.array(box) + rng.normal(0, 8, 4)
            if rng.random() < 0.8 and moved[0] < moved[2] and moved[1] < moved[3]:
                answers.append((name if rng.random() < 0.9 else "a", tuple(moved)))
        images.append((references, answers))
    ours = detection_metrics([match_image(references, answers) for references, answers in images])
    theirs = coco_values(images)
    assert 0.1 < (ours["mAP"] or 0) < 0.9
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-12)


def test_equal_boxes_have_every_metric_and_missing_ones_have_none() -> None:
    boxes: list[Labelled] = [("a", (0, 0, 10, 10)), ("b", (5, 5, 20, 20))]
    assert set(detection_metrics([match_image(boxes, boxes)]).values()) == {1.0}
    nothing = detection_metrics([match_image([], [])])
    assert set(nothing.values()) == {None}
    missed = detection_metrics([match_image(boxes, [])])
    assert (missed["mAP"], missed["precision_50"], missed["recall_50"], missed["f1_50"]) == (0, None, 0, 0)


def test_no_patient_of_synthetic_images_is_in_two_splits(tmp_path: Path) -> None:
    synthetic = SyntheticData(kind="boxes", train=40, test=10, size=96)
    assert DETECT.synthetic is not None
    files = DETECT.synthetic.write(tmp_path, synthetic, 3407)
    patients = [{row["patient_id"] for row in json.loads(file.read_text())} for file in files.values()]
    assert len(patients) == 2
    assert not patients[0] & patients[1]


def test_classes_that_are_numbers_are_reported_and_can_be_named(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "boxes": [[0, 0, 90, 90]], "labels": [str(i)]} for i in (10, 2)]
    data = load(tmp_path, rows)
    assert data.train[0].fields["classes"] == ("2", "10")
    assert "tasks.detect.classes_are_numbers" in [one.code for one in data.warnings]
    named = load(tmp_path, rows, detect={"names": {"2": "nodule", "10": "effusion"}})
    assert [one.reference["labels"] for one in named.train] == [["effusion"], ["nodule"]]
    assert "tasks.detect.classes_are_numbers" not in [one.code for one in named.warnings]
