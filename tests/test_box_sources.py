"""Datasets with boxes: COCO, Pascal VOC, YOLO and tables give one row for each image, with the boxes of the dataset."""

import gzip
import json
import zipfile
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
    with raises(DataError, "data.image_size_differs") as caught:
        load(coco_file(tmp_path))
    assert "100 x 50" in str(caught.problem.value)
    images(tmp_path, "a.png")
    assert len(load(coco_file(tmp_path)).train) == 2


def test_segmentations_and_annotations_of_other_images_are_reported(tmp_path: Path) -> None:
    whole = CONTENT["annotations"][0]
    more = [{**whole, "id": 3, "image_id": 1}, {**whole, "id": 8, "segmentation": [[1, 2, 3, 4, 5, 6]]}]
    data = load(coco_file(tmp_path, annotations=[*CONTENT["annotations"], *more]), max_dropped=0.9)
    assert {one.code: one.count for one in data.dropped} == {"data.coco_image_unknown": 1}
    assert "data.coco_segmentation" in {one.code for one in data.warnings}
    assert len(found(data)["a.png"]) == 3


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"category_id": 1}, "data.coco_category_unknown"),
        ({"bbox": [1, 2, 3]}, "data.coco_box_malformed"),
        ({"bbox": None}, "data.coco_box_malformed"),
        ({"bbox": [1, 2, 10**400, 3]}, "data.coco_box_malformed"),
        ({"iscrowd": 1}, "data.coco_crowd"),
    ],
)
def test_an_image_with_an_unusable_annotation_is_not_an_image_without_it(
    tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    one, two = CONTENT["annotations"]
    annotations = [one, {**one, "id": 3, **change}, {**two, "image_id": 9}]
    data = load(coco_file(tmp_path, annotations=annotations), max_dropped=0.9)
    assert {one.code: one.count for one in data.dropped} == {code: 1}
    assert list(found(data)) == ["b.png"]


def test_ids_that_are_texts_or_repeated_never_move_a_box_to_another_image(tmp_path: Path) -> None:
    texts = [{**one, "image_id": str(one["image_id"])} for one in CONTENT["annotations"]]
    assert len(found(load(coco_file(tmp_path, annotations=texts)))["a.png"]) == 2
    for key in ("images", "categories"):
        first, second = CONTENT[key]
        with raises(DataError, "data.coco_id_repeated"):
            load(coco_file(tmp_path, **{key: [first, {**second, "id": first["id"]}]}))


def test_ids_of_coco_can_have_a_decimal_point(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    annotations = [{**one, "image_id": 7.0, "category_id": 3.0} for one in CONTENT["annotations"]]
    assert len(found(load(coco_file(tmp_path, annotations=annotations)))["a.png"]) == 2


def test_coco_boxes_that_are_corners_or_fractions_stop(tmp_path: Path) -> None:
    one, two = CONTENT["annotations"]
    corners = [{**one, "bbox": [10, 20, 40, 60]}, {**two, "bbox": [100, 20, 150, 60]}]
    with raises(DataError, "data.coco_boxes_are_corners"):
        load(coco_file(tmp_path, annotations=corners))
    with raises(DataError, "data.coco_boxes_are_fractions"):
        load(coco_file(tmp_path, annotations=[{**one, "bbox": [0.1, 0.2, 0.3, 0.4]}]))


def test_captions_are_not_read_as_boxes(tmp_path: Path) -> None:
    captions = [{"id": 1, "image_id": 7, "caption": "two findings"}]
    file = coco_file(tmp_path, annotations=captions)
    assert not COCO_FORMAT.matches(Look(file, None))
    assert COCO_FORMAT.matches(Look(coco_file(tmp_path), None))


def test_captions_of_coco_are_rows_of_their_images(tmp_path: Path) -> None:
    captions = [{"id": 4, "image_id": 7, "caption": "Two findings."}, {"id": 5, "image_id": 8, "caption": "None."}]
    images(tmp_path, "a.png")
    source = coco_file(tmp_path, annotations=captions)
    index = open_index(str(source))
    assert (index.metadata.format, len(index)) == ("COCO captions", 1)
    assert [one.code for one in index.skipped] == ["data.coco_image_unknown"]
    assert [(one.code, one.examples) for one in index.metadata.noted] == [("data.coco_caption_missing", ("images[1]",))]
    sample = load(source, "report_generation", max_dropped=0.5).train[0]
    assert (sample.id, sample.images[0].path.name, sample.reference["report"]) == ("4", "a.png", "Two findings.")


def test_captions_after_many_images_are_found(tmp_path: Path) -> None:
    many = [{"id": i, "file_name": f"{i:08}.png"} for i in range(40_000)]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": many, "annotations": [{"id": 1, "image_id": 7, "caption": "Normal."}]}))
    index = open_index(str(file))
    assert (index.metadata.format, index[0][1]["image"]) == ("COCO captions", "00000007.png")


def test_coco_entries_without_an_id_are_counted_and_ids_of_pandas_are_numbers(tmp_path: Path) -> None:
    first, second = CONTENT["images"]
    entries = [{**first, "id": 7.0}, second, {"file_name": "c.png"}, {**second, "id": True}, "d.png"]
    annotations = [{**CONTENT["annotations"][0], "category_id": 3.0}, None]
    index = open_index(str(coco_file(tmp_path, images=entries, annotations=annotations)))
    assert [(row["image"], row["labels"]) for _, row in index] == [("a.png", ["nodule"]), ("b.png", [])]
    lost = sorted((one.code, one.count) for one in index.skipped)
    assert lost == [("data.coco_id_missing", 2), ("data.coco_not_object", 1), ("data.coco_not_object", 1)]


def test_coco_and_nih_in_a_zip_have_its_images(tmp_path: Path) -> None:
    for grey, name in enumerate(("a.png", "b.png", "00013118_008.png")):
        Image.new("L", SIZE, grey).save(tmp_path / name)
    nih = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00013118_008.png,Mass,1,2,3,4,,,\n"
    for archive, name, text in (("coco", "instances.json", json.dumps(CONTENT)), ("nih", "boxes.csv", nih)):
        with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as file:
            file.writestr(f"top/{name}", text)
            for image in tmp_path.glob("*.png"):
                file.write(image, f"top/{image.name}")
    (tmp_path / "nih.csv.gz").write_bytes(gzip.compress(nih.encode()))
    for archive, boxes in (("coco.zip", 2), ("nih.zip", 1)):
        sample = load(tmp_path / archive).train[0]
        assert Image.open(sample.images[0].path).size == SIZE
        assert len(sample.reference["boxes"]) == boxes
    assert found(load(tmp_path / "nih.csv.gz")) == {"00013118_008.png": [("Mass", [1, 2, 4, 6])]}


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


def test_lists_of_voc_are_its_splits(tmp_path: Path) -> None:
    images(tmp_path / "JPEGImages", *(f"{name}.png" for name in "abce"))
    (tmp_path / "Annotations").mkdir()
    for name in "abce":
        objects = OBJECT.format("nodule", 1, 1, 10, 20)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(VOC.format(name=f"{name}.png", objects=objects))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, text in (("trainval", "a\nb\n"), ("test", "c\nd\n"), ("nodule_train", "a 1\n")):
        (lists / f"{name}.txt").write_text(text)
    with raises(DataError, "data.split_not_certain") as caught:
        load(tmp_path)
    assert caught.problem.value == ["test", "trainval"]
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    data = load(tmp_path, max_dropped=0.5)
    assert [[one.id for one in split] for split in (data.train, data.validation, data.test)] == [["a"], ["b"], ["c"]]
    assert [(one.code, one.examples) for one in data.dropped] == [
        ("data.voc_annotation_missing", ("name 2 of the list in order of name",))
    ]
    assert "data.voc_annotation_in_no_split" in [one.code for one in data.warnings]
    (lists / "train.txt").write_text("b\n")
    (lists / "val.txt").write_text("a\n")
    assert [one.id for one in load(tmp_path, max_dropped=0.5).train] == ["b"]


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


def test_yolo_segments_and_missing_labels_are_reported(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels/train/a.txt").write_text("0 0.1 0.2 0.3 0.2 0.3 0.6\n")
    images(root / "images/train", "d.png")
    data = load(root)
    ((label, box),) = found(data)["a.png"]
    assert label == "nodule"
    assert box == pytest.approx([20, 20, 60, 60])
    assert {"data.yolo_segment", "data.yolo_labels_missing"} <= {one.code for one in data.warnings}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("7 0.5 0.5 1 1", "data.yolo_class_unknown"),
        ("0 0.5 0.5", "data.yolo_line_malformed"),
        ("0 0.5 0.5 0.1 0.1 0.93", "data.yolo_line_malformed"),
        ("\ufeff0 0.5 0.5 0.1 0.1".encode("utf-16"), "data.yolo_labels_not_readable"),
    ],
)
def test_an_image_whose_labels_cannot_be_read_is_left_out(tmp_path: Path, content: str | bytes, code: str) -> None:
    root = yolo(tmp_path)
    whole = content if isinstance(content, bytes) else f"0 0.5 0.5 0.2 0.2\n{content}\n".encode()
    (root / "labels/train/a.txt").write_bytes(whole)
    images(root / "images/train", "d.png")
    (root / "labels/train/d.txt").write_text("0 0.5 0.5 0.2 0.2")
    data = load(root, max_dropped=0.9)
    assert {one.code: one.count for one in data.dropped} == {code: 1}
    assert "a.png" not in found(data)


def test_points_of_a_pose_are_not_corners_of_its_box(tmp_path: Path) -> None:
    root = yolo(tmp_path, None)
    (root / "data.yaml").write_text("names: [nodule, effusion]\nkpt_shape: [2, 2]\n")
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2 0.1 0.1 0.9 0.9\n")
    ((_, box),) = found(load(root))["a.png"]
    assert box == pytest.approx([80, 40, 120, 60])


def test_class_names_come_from_the_dataset_only_and_must_agree(tmp_path: Path) -> None:
    root = yolo(tmp_path / "mine", None)
    (tmp_path / "other.yaml").write_text("names: [cat, dog]\n")
    with raises(DataError, "data.yolo_class_names_missing"):
        open_index(str(root))
    (tmp_path / "other.yaml").write_text("path: sets/mine\nnames: [nodule, effusion]\n")
    assert len(load(root).train) == 2
    (root / "labels" / "classes.txt").write_text("nodule\neffusion\n")
    assert len(load(root).train) == 2
    (root / "classes.txt").write_text("effusion\nnodule\n")
    with raises(DataError, "data.yolo_class_names_differ"):
        open_index(str(root))
    (root / "classes.txt").unlink()
    (root / "data.yaml").write_text("nc: 3\nnames: [nodule, effusion]\n")
    with raises(DataError, "data.yolo_class_count_differs"):
        open_index(str(root))


def test_changed_class_names_and_new_images_of_yolo_are_read_again(tmp_path: Path) -> None:
    root = yolo(tmp_path, None)
    for first in ("nodule", "mass"):
        (root / "chest.yml").write_text(f"names: [{first}, effusion]\n")
        assert found(load(root))["a.png"][0][0] == first
    images(root / "images" / "train", "d.png")
    assert found(load(root))["d.png"] == []


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("data.yaml", "names: {0: no, 1: yes}", "data.yolo_class_name_not_text"),
        ("data.yaml", "names: [nodule, 1.5]", "data.yolo_class_name_not_text"),
        ("data.yaml", "names: [nodule", "data.yolo_yaml_invalid"),
        ("classes.txt", "nodule\n\neffusion\n", "data.yolo_name_blank"),
        ("classes.txt", "\nnodule\neffusion\n", "data.yolo_name_blank"),
    ],
)
def test_class_names_of_yolo_are_not_guessed(tmp_path: Path, name: str, text: str, code: str) -> None:
    (yolo(tmp_path, None) / name).write_text(text)
    with raises(DataError, code):
        open_index(str(tmp_path))


def test_labels_of_yolo_without_an_image_are_counted_in_their_split(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    for folder in ("train", "Train"):
        (root / "labels" / folder).mkdir(exist_ok=True)
        (root / "labels" / folder / "gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    lost = {split: open_index(f"{root}#{split}").skipped for split in ("train", "val")}
    first, second = (f"file {number} of labels in order of path" for number in (1, 4))
    assert lost["train"][0].examples == (first, second)
    assert lost["val"][0].examples == (first,)


def test_lists_of_images_in_the_yaml_of_yolo_are_its_splits(tmp_path: Path) -> None:
    images(tmp_path / "images", *(f"{name}.png" for name in "abce"))
    for name in "abce":
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    names = {"path": "/content/data", "train": "autosplit_train.txt", "test": "autosplit_test.txt", "names": ["nodule"]}
    (tmp_path / "chest.yaml").write_text(yaml.safe_dump(names))
    (tmp_path / "autosplit_train.txt").write_text("./images/a.png\n/content/data/images/c.png\nimages/gone.png\n")
    (tmp_path / "autosplit_test.txt").write_text("./images/b.png\n")
    data = load(tmp_path, max_dropped=0.5)
    assert [[one.images[0].path.name for one in split] for split in (data.train, data.test)] == [
        ["a.png", "c.png"],
        ["b.png"],
    ]
    assert [one.code for one in data.dropped] == ["data.yolo_listed_image_missing"]
    unread = [one for one in data.warnings if one.code == "data.yolo_image_in_no_split"]
    assert all("image 4 in order of path" in str(one) for one in unread)
    assert unread


def test_yolo_as_cvat_exports_it_has_images_beside_labels(tmp_path: Path) -> None:
    images(tmp_path / "obj_train_data", "a.png")
    (tmp_path / "obj_train_data" / "a.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "obj.names").write_text("nodule\neffusion\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.png\n")
    assert found(load(tmp_path)) == {"a.png": [("effusion", [0, 0, 200, 100])]}


def test_an_integer_beyond_the_range_of_floats_is_no_number_of_a_box(tmp_path: Path) -> None:
    table = {"image": "a.png", "class": "nodule", "x_min": 1, "y_min": 2, "x_max": 10**400, "y_max": 9}
    rsna = {"patientId": "a", "x": 1, "y": 2, "width": 10**400, "height": 9, "Target": 1}
    for row, code in ((table, "data.box_table_not_number"), (rsna, "data.box_table_row_incomplete")):
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        with pytest.raises(DataError, match=code):
            load(tmp_path / "rows.json")


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
    images(tmp_path, "a.png", "b.png", "c.png")
    lines = ["filename,cell_type,xmin,xmax,ymin,ymax", "a.png,RBC,0.1,0.5,0.2,0.4", "b.png,WBC,0.1,,0.2,0.4"]
    lines += ["b.png,WBC,0.1,0.5,0.2,0.4", "c.png,RBC,0.1,x,0.2,0.4"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = load(tmp_path / "t.csv", max_dropped=0.9)
    ((label, box),) = found(data)["a.png"]
    assert label == "RBC"
    assert box == pytest.approx([20, 20, 100, 40])
    assert {one.code for one in data.dropped} == {"data.box_table_row_incomplete", "data.box_table_not_number"}
    assert set(found(data)) == {"a.png"}


def test_columns_of_a_corner_and_sides_are_boxes_of_a_table(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    lines = ["image,label,x,y,width,height", "a.png,n,10,20,30,40", "a.png,m,100,20,30,40", "b.png,n,1,2,30,40"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    data = load(tmp_path / "t.csv", boxes="xywh")
    assert found(data)["a.png"] == [("n", [10, 20, 40, 60]), ("m", [100, 20, 130, 60])]


def test_sides_in_columns_are_never_read_as_corners(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    lines = [f"{'ab'[n % 2]}.png,n,{10 + n},{5 + n},{100 + 8 * n},{50 + 4 * n}" for n in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,x,y,width,height", *lines]) + "\n")
    with raises(DataError, "data.boxes_fit_no_format"):  # as corners, all are inside
        load(tmp_path / "t.csv")
    lines = ["image,label,left,top,width,height", "a.png,n,10,20,30,40", "b.png,n,150,20,50,60"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    assert found(load(tmp_path / "t.csv")) == {"a.png": [("n", [10, 20, 40, 60])], "b.png": [("n", [150, 20, 200, 80])]}


def test_named_corners_of_a_table_can_be_percent(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (400, 400)).save(tmp_path / name)
    lines = [f"{'ab'[n % 2]}.png,n,{n},{2 * n},{n + 20},{2 * n + 70}" for n in range(14)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,xmin,ymin,xmax,ymax", *lines]) + "\n")
    data = load(tmp_path / "t.csv", boxes="xyxy percent")
    assert found(data)["a.png"][0] == ("n", [0, 0, 80, 280])


def test_readers_that_disagree_are_reported_and_a_contradiction_is_left_out(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png")
    header = "image_id,class_name,rad_id,x_min,y_min,x_max,y_max"
    lines = ["a.png,Nodule,R1,16,16,32,32", "a.png,No finding,R2,,,,", "b.png,Nodule,R1,16,16,32,32"]
    lines += [
        "b.png,No finding,R1,,,,",
        "c.png,Nodule,R1,16,16,32,32",
        ",Nodule,R1,16,16,32,32",
        ",Nodule,R1,1,1,32,32",
    ]
    (tmp_path / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    data = load(tmp_path / "t.csv", max_dropped=0.9)
    assert set(found(data)) == {"a.png", "c.png"}
    codes = {one.code: one.count for one in data.dropped}
    assert codes == {"data.box_table_contradicts": 1, "data.box_table_row_incomplete": 2}
    assert "data.box_table_readers_disagree" in {one.code for one in data.warnings}


def test_a_list_of_classes_of_one_box_gives_a_box_for_each(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    lines = ["image_id,finding_categories,xmin,ymin,xmax,ymax", "a.png,\"['Mass', 'Asymmetry']\",10,20,40,60"]
    (tmp_path / "t.csv").write_text("\n".join([*lines, "b.png,\"['No Finding']\",,,,"]) + "\n")
    data = load(tmp_path / "t.csv")
    assert found(data) == {"a.png": [(name, [10, 20, 40, 60]) for name in ("Mass", "Asymmetry")], "b.png": []}


@pytest.mark.parametrize("label", [{"name": "nodule"}, True, 1.5, ["nodule", None]])
def test_a_class_of_a_table_that_is_no_text_is_counted(tmp_path: Path, label: Any) -> None:
    box = {"x1": 1, "y1": 2, "x2": 30, "y2": 40}
    index = open_index(
        str(rows_file(tmp_path, {"image": "a.png", "label": 3.0, **box}, {"image": "b.png", "label": label, **box}))
    )
    assert [row["labels"] for _, row in index] == [["3"]]
    assert [one.code for one in index.skipped] == ["data.box_table_class_not_text"]


@pytest.mark.parametrize("texts", [{"query": "Q?", "response": "a"}, {"caption": "a"}])
def test_rows_with_texts_and_boxes_are_no_table_of_boxes(tmp_path: Path, texts: dict[str, str]) -> None:
    row = {"image": "a.png", "label": "nodule", "bbox": [1, 2, 30, 40], **texts}
    assert len(open_index(str(rows_file(tmp_path, row, row)))) == 2


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


def rows_file(folder: Path, *rows: dict[str, Any]) -> Path:
    images(folder, *(row["image"] for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def test_named_numbers_have_the_unit_of_the_recipe_or_of_the_only_format_that_fits(tmp_path: Path) -> None:
    sides = {"x": 10, "y": 20, "width": 30, "height": 40}
    percent = rows_file(tmp_path, {"image": "a.png", "label": "n", "boxes": [sides]})
    with raises(DataError, "data.boxes_ambiguous"):
        load(percent)
    ((_, box_found),) = found(load(percent, boxes="xywh percent"))["a.png"]
    assert box_found == pytest.approx([20, 20, 80, 60])
    assert found(load(percent, boxes="xywh"))["a.png"] == [("n", [10, 20, 40, 60])]
    box = {"xmin": 0.1, "ymin": 0.2, "xmax": 0.4, "ymax": 0.6}
    unit = rows_file(tmp_path, {"image": "a.png", "label": "n", "boxes": [box]})
    ((_, box_found),) = found(load(unit))["a.png"]
    assert box_found == pytest.approx([20, 20, 80, 60])
    centre = rows_file(tmp_path, {"image": "a.png", "label": "n", "boxes": [{"cx": 150, "cy": 50, "w": 20, "h": 10}]})
    assert found(load(centre))["a.png"] == [("n", [140, 45, 160, 55])]


def test_a_lesion_row_must_have_the_size_of_its_image(tmp_path: Path) -> None:
    row = {"image": "a.png", "dx": "mel", "bbox": [200, 100, 400, 200], "width": 400, "height": 200}
    with raises(DataError, "data.image_size_differs"):
        load(rows_file(tmp_path, row), "lesion", boxes="xyxy")


def test_a_class_that_an_answer_would_cut_stops(tmp_path: Path) -> None:
    file = rows_file(tmp_path, {"image": "a.png", "labels": ["effusion\nleft"], "boxes": [[10, 20, 30, 40]]})
    with raises(DataError, "tasks.detect.class_not_parsed"):
        load(file, boxes="xyxy")
    file = rows_file(
        tmp_path, {"image": "a.png", "labels": ["T2* (NOS), left/right: 5 mm"], "boxes": [[10, 20, 30, 40]]}
    )
    assert len(load(file, boxes="xyxy").train) == 1


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


PUBLISHED = {
    "rsna": (
        "patientId,x,y,width,height,Target\nb,,,,,0\na,10.0,20.0,30.0,40.0,1\na,100,0,50,50,1\n",
        {"a.png": [("Lung Opacity", [10, 20, 40, 60]), ("Lung Opacity", [100, 0, 150, 50])], "b.png": []},
    ),
    "siim": (
        "id,boxes,label,StudyInstanceUID\n"
        "a_image,\"[{'x': 10, 'y': 20, 'width': 30, 'height': 40}]\",opacity 1 10 20 40 60,s1\n"
        "b_image,,none 1 0 0 1 1,s2\n",
        {"a.png": [("opacity", [10, 20, 40, 60])], "b.png": []},
    ),
    "tbx11k": (
        "fname,image_height,image_width,source,bbox,target,tb_type,image_type\n"
        "a.png,100,200,train,\"{'xmin': 10, 'ymin': 20, 'width': 30, 'height': 40}\",tb,active_tb,tb\n"
        "b.png,100,200,train,none,no_tb,none,healthy\n",
        {"a.png": [("active_tb", [10, 20, 40, 60])], "b.png": []},
    ),
    "deeplesion": (
        "File_name,Patient_index,Bounding_boxes,Image_size\n"
        '1_01_01_a.png,1,"10, 20, 40, 60","200, 100"\n'
        '1_01_01_b.png,1,"100, 0, 150, 50","200, 100"\n',
        {"a.png": [("Lesion", [10, 20, 40, 60])], "b.png": [("Lesion", [100, 0, 150, 50])]},
    ),
    "centres": (
        "image,label,x_center,y_center,width,height\na,nodule,25,40,30,40\nb,nodule,125,25,50,50\n",
        {"a.png": [("nodule", [10, 20, 40, 60])], "b.png": [("nodule", [100, 0, 150, 50])]},
    ),
    "centres as fractions": (
        "image,label,cx,cy,w,h\na,nodule,0.125,0.4,0.15,0.4\nb,nodule,0.625,0.25,0.25,0.5\n",
        {"a.png": [("nodule", [10, 20, 40, 60])], "b.png": [("nodule", [100, 0, 150, 50])]},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_of_boxes_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    text, expected = PUBLISHED[name]
    (tmp_path / "rows.csv").write_text(text)
    images(tmp_path if name != "deeplesion" else tmp_path / "1_01_01", "a.png", "b.png")
    boxes = found(load(tmp_path / "rows.csv"))
    assert boxes.keys() == expected.keys()
    for image, listed in expected.items():
        assert [label for label, _ in boxes[image]] == [label for label, _ in listed]
        assert [box for _, box in boxes[image]] == [pytest.approx(box) for _, box in listed]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("patientId,x,y,width,height,Target", "b,1,2,3,4,0"),
        ("patientId,x,y,width,height,Target", "b,,,,,1"),
        (
            "id,boxes,label,StudyInstanceUID",
            "b,\"[{'x': 1, 'y': 2, 'width': 30, 'height': 40}]\",opacity 1 9 9 40 60,s",
        ),
        ("File_name,Patient_index,Bounding_boxes,Image_size", 'b.png,1,"10, 20, 40","200, 100"'),
    ],
)
def test_a_row_that_contradicts_its_published_table_is_counted(tmp_path: Path, header: str, row: str) -> None:
    (tmp_path / "rows.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match=r"data\.box_table_row_incomplete"):
        open_index(str(tmp_path / "rows.csv"))
