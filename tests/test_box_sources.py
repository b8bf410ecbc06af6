"""Datasets with boxes: COCO, Pascal VOC, YOLO and tables give one row for each image, with the boxes of the dataset."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torchvision.ops import box_convert

from tests.helpers.problems import raises
from tests.helpers.recipes import load_data, make_recipe
from toolkit.data import open_index
from toolkit.data.formats import Look
from toolkit.data.formats.coco import COCO as COCO_FORMAT
from toolkit.data.loading import DataSplits
from toolkit.errors import DataError

SIZE = (200, 100)


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("L", SIZE, 90).save(folder / name)


def load(source: Path, task: str = "detect", root: Path | None = None, **data: Any) -> DataSplits:
    table = {"task": task, "train": str(source), "split": {"test": 0.0}, **data}
    table |= {} if root is None else {"image_root": str(root)}
    return load_data(make_recipe({"run": {"name": "r"}, "data": table, "sft": {}}))


def found(data: DataSplits) -> dict[str, list[tuple[str, list[float]]]]:
    """Image name -> class and corners of its boxes."""
    return {
        sample.images[0].path.name: list(zip(sample.reference["labels"], sample.reference["boxes"], strict=True))
        for sample in data.train
    }


CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 200, "height": 100},
        {"id": 9, "file_name": "b.png", "width": 200, "height": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [100.5, 0, 99.5, 100], "area": 9950, "iscrowd": 0},
    ],
    "categories": [{"id": 3, "name": "nodule"}, {"id": 5, "name": "effusion"}],
}


def coco_file(folder: Path, **changes: Any) -> Path:
    file = folder / "instances.json"
    file.write_text(json.dumps({**CONTENT, **changes}))
    return file


def test_coco_boxes_are_those_that_pycocotools_reads(tmp_path: Path) -> None:
    file = coco_file(tmp_path)
    assert open_index(str(file)).description == f"{file}: COCO instances, 2 rows"
    coco = COCO(str(file))
    expected = {
        coco.imgs[image]["file_name"]: [
            (coco.cats[one["category_id"]]["name"], [x, y, x + w, y + h])
            for one in coco.imgToAnns[image]
            for x, y, w, h in [one["bbox"]]
        ]
        for image in coco.imgs
    }
    assert found(load(file)) == expected
    assert expected["b.png"] == []


def test_a_format_in_the_recipe_is_not_used_for_boxes_of_a_known_format(tmp_path: Path) -> None:
    data = load(coco_file(tmp_path), boxes="xywh")
    assert found(data) == found(load(coco_file(tmp_path)))
    assert "data.boxes_of_rows" in {one.code for one in data.warnings}
    assert "data.boxes_of_rows" not in {one.code for one in load(coco_file(tmp_path)).warnings}


def test_resized_images_stop_the_run(tmp_path: Path) -> None:
    Image.new("L", (100, 50)).save(tmp_path / "a.png")
    with raises(DataError, "tasks.detect.image_size_differs") as caught:
        load(coco_file(tmp_path))
    assert "100 x 50" in str(caught.problem.value)
    images(tmp_path, "a.png")
    assert len(load(coco_file(tmp_path)).train) == 2


def test_unusable_annotations_are_counted_and_segmentations_are_reported(tmp_path: Path) -> None:
    whole = CONTENT["annotations"][0]
    more = [
        {**whole, "id": 3, "image_id": 1},
        {**whole, "id": 4, "category_id": 1},
        {**whole, "id": 5, "bbox": [1, 2, 3]},
        {**whole, "id": 6, "iscrowd": 1},
        {**whole, "id": 8, "segmentation": [[1, 2, 3, 4, 5, 6]]},
    ]
    data = load(coco_file(tmp_path, annotations=[*CONTENT["annotations"], *more]), max_dropped=0.9)
    assert {one.code: one.count for one in data.dropped} == {
        "data.coco_image_unknown": 1,
        "data.coco_category_unknown": 1,
        "data.coco_box_malformed": 1,
        "data.coco_crowd": 1,
    }
    assert "data.coco_segmentation" in {one.code for one in data.warnings}
    assert len(found(data)["a.png"]) == 3


def test_captions_are_not_read_as_boxes(tmp_path: Path) -> None:
    captions = [{"id": 1, "image_id": 7, "caption": "two findings"}]
    file = coco_file(tmp_path, annotations=captions)
    assert not COCO_FORMAT.matches(Look(file, None))
    assert COCO_FORMAT.matches(Look(coco_file(tmp_path), None))


def test_lesion_names_the_format_and_the_task_for_it(tmp_path: Path) -> None:
    with raises(DataError, "data.too_many_unusable_rows") as caught:
        load(coco_file(tmp_path), "lesion")
    assert "COCO instances" in str(caught.error)


IMAGE_SIZE = "<size><width>200</width><height>100</height></size>"
VOC = f"<annotation><filename>{{name}}</filename>{IMAGE_SIZE}{{objects}}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.mark.parametrize("layout", ["one folder", "VOC2007"])
def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path: Path, layout: str) -> None:
    folder = tmp_path if layout == "one folder" else tmp_path / "Annotations"
    images(tmp_path if layout == "one folder" else tmp_path / "JPEGImages", "a.png", "b.png")
    folder.mkdir(exist_ok=True)
    boxes = OBJECT.format("nodule", 1, 1, 10, 20) + OBJECT.format("effusion", 100, 50, 200, 100)
    (folder / "a.xml").write_text(VOC.format(name="a.png", objects=boxes))
    (folder / "b.xml").write_text(VOC.format(name="b.png", objects=""))
    data = load(tmp_path)
    assert found(data) == {"a.png": [("nodule", [0, 0, 10, 20]), ("effusion", [99, 49, 200, 100])], "b.png": []}
    assert all(sample.images[0].path.is_file() for sample in data.train)
    assert found(load(folder / "a.xml", root=data.train[0].images[0].path.parent))["a.png"] == found(data)["a.png"]


def test_a_damaged_or_hostile_xml_is_counted(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "a.xml").write_text(VOC.format(name="a.png", objects=OBJECT.format("nodule", 1, 1, 10, 20)))
    (tmp_path / "b.xml").write_text("<annotation><filename>")
    (tmp_path / "c.xml").write_text(
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation><filename>&z;</filename></annotation>'
    )
    (tmp_path / "d.xml").write_text(VOC.format(name="a.png", objects="<object><name>x</name></object>"))
    index = open_index(str(tmp_path))
    assert {one.code: one.count for one in index.skipped} == {"data.voc_not_xml": 2, "data.voc_object_malformed": 1}


def yolo(root: Path, names: Any = ("nodule", "effusion")) -> Path:
    for split, name, lines in (
        ("train", "a", "0 0.25 0.5 0.1 0.2\n1 0.5 0.5 1 1\n"),
        ("train", "b", ""),
        ("val", "c", "1 0.9 0.9 0.2 0.2\n"),
    ):
        images(root / "images" / split, f"{name}.png")
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split / f"{name}.txt").write_text(lines)
    if names is not None:
        (root / "data.yaml").write_text(yaml.safe_dump({"names": names if isinstance(names, dict) else list(names)}))
    return root


@pytest.mark.parametrize("names", [("nodule", "effusion"), {0: "nodule", 1: "effusion"}])
def test_yolo_boxes_are_those_of_torchvision(tmp_path: Path, names: Any) -> None:
    data = load(yolo(tmp_path, names))
    scale = torch.tensor([200.0, 100.0, 200.0, 100.0])
    boxes = torch.tensor([[0.25, 0.5, 0.1, 0.2], [0.5, 0.5, 1, 1]])
    expected = (box_convert(boxes, "cxcywh", "xyxy") * scale).tolist()
    (first, second) = found(data)["a.png"]
    assert (first[0], second[0]) == ("nodule", "effusion")
    assert [first[1], second[1]] == [pytest.approx(box) for box in expected]
    assert (len(data.train), len(data.validation)) == (2, 1)
    assert found(data)["b.png"] == []


def test_yolo_segments_and_odd_lines_are_reported(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels/train/a.txt").write_text("0 0.1 0.2 0.3 0.2 0.3 0.6\n7 0.5 0.5 1 1\n0 0.5 0.5\n")
    images(root / "images/train", "d.png")
    data = load(root, max_dropped=0.9)
    ((label, box),) = found(data)["a.png"]
    assert label == "nodule"
    assert box == pytest.approx([20, 20, 60, 60])
    assert {one.code: one.count for one in data.dropped} == {
        "data.yolo_class_unknown": 1,
        "data.yolo_line_malformed": 1,
    }
    assert {"data.yolo_segment", "data.yolo_labels_missing"} <= {one.code for one in data.warnings}


def test_yolo_without_class_names_stops(tmp_path: Path) -> None:
    with raises(DataError, "data.yolo_class_names_missing"):
        open_index(str(yolo(tmp_path, None)))
    (tmp_path / "classes.txt").write_text("nodule\neffusion\n")
    assert len(load(tmp_path).train) == 2


VINDR = """image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max,patient
a.png,Nodule,8,R1,16,16,32,32,P1
b.png,No finding,14,R1,,,,,P2
a.png,Effusion,10,R2,32.5,32,48,48,P1
"""


def test_a_table_of_boxes_is_grouped_by_image(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "train.csv").write_text(VINDR)
    data = load(tmp_path / "train.csv", group="patient")
    assert found(data) == {"a.png": [("Nodule", [16, 16, 32, 32]), ("Effusion", [32.5, 32, 48, 48])], "b.png": []}
    assert [sample.group for sample in data.train] == ["P1", "P2"]
    assert "data.box_table_several_readers" in {one.code for one in data.warnings}


def test_one_finding_of_two_readers_stops_the_run(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "train.csv").write_text(VINDR + "a.png,Nodule,8,R3,17,16,33,32,P1\n")
    with raises(DataError, "data.box_table_marked_twice"):
        load(tmp_path / "train.csv")


def test_corners_can_be_fractions_and_incomplete_rows_are_counted(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    lines = ["filename,cell_type,xmin,xmax,ymin,ymax", "a.png,RBC,0.1,0.5,0.2,0.4", "a.png,WBC,0.1,,0.2,0.4"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\na.png,RBC,0.1,x,0.2,0.4\n")
    data = load(tmp_path / "t.csv", max_dropped=0.9)
    ((label, box),) = found(data)["a.png"]
    assert label == "RBC"
    assert box == pytest.approx([20, 20, 100, 40])
    assert {one.code for one in data.dropped} == {"data.box_table_row_incomplete", "data.box_table_not_number"}


def test_rows_with_one_box_and_a_repeated_image_are_grouped_and_others_are_not(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    rows = 'image,dx,bbox\na.png,nv,"[16,16,32,32]"\na.png,mel,"[32,32,48,48]"\nb.png,nv,"[150,60,190,90]"\n'
    (tmp_path / "t.csv").write_text(rows)
    data = load(tmp_path / "t.csv", boxes="xyxy")
    assert found(data)["a.png"] == [("nv", [16, 16, 32, 32]), ("mel", [32, 32, 48, 48])]
    grounded = [{"image": "a.png", "label": "nv", "bbox": [1, 2, 3, 4], "question": "Where?", "answer": "here"}] * 2
    (tmp_path / "grounded.json").write_text(json.dumps(grounded))
    assert "question" in open_index(str(tmp_path / "grounded.json")).columns
    (tmp_path / "one.csv").write_text('image,dx,bbox\na.png,nv,"[16,16,32,32]"\n')
    assert open_index(str(tmp_path / "one.csv")).columns == ("image", "dx", "bbox")


def test_the_list_of_the_nih_is_read_as_published(tmp_path: Path) -> None:
    images(tmp_path, "00013118_008.png")
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,", "00013118_008.png,Atelectasis,25.5,47,86,30,,,"]
    (tmp_path / "BBox_List_2017.csv").write_text("\n".join([*lines, "00013118_008.png,Mass,1,2,3,4,,,", ""]))
    data = load(tmp_path / "BBox_List_2017.csv")
    assert found(data) == {"00013118_008.png": [("Atelectasis", [25.5, 47, 111.5, 77]), ("Mass", [1, 2, 4, 6])]}
    assert data.train[0].group == "00013118"


def test_a_compressed_file_of_coco_has_the_same_rows(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 20]}],
        "categories": [{"id": 2, "name": "nodule"}],
    }
    text = json.dumps(content).encode()
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    rows = [list(open_index(str(tmp_path / name))) for name in ("a.json", "a.json.gz")]
    assert rows[0] == rows[1]
    assert rows[0][0][1]["boxes"] == [[1, 2, 11, 22]]
