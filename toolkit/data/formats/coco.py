"""COCO instances: one JSON object with images, annotations and categories (Lin et al. 2014, arXiv 1405.0312)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.formats.row_file import row_file
from toolkit.data.json_stream import Record
from toolkit.errors import DataError

NAME = "COCO instances"

_CHUNK = 1 << 20


def _matches(look: Look) -> bool:
    images, annotations = (_objects(look.members.get(key)) for key in ("images", "annotations"))
    if annotations and not any("bbox" in one for one in annotations):
        return False  # captions or keypoints
    if any({"image_id", "bbox"} <= one.keys() for one in annotations):
        return True
    return bool(images) and all({"id", "file_name"} <= one.keys() for one in images) and _has_boxes(look.path)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _has_boxes(file: Path) -> bool:
    """Return whether the file has the keys of instances. Its annotations can come after the first MB."""
    tail, found = b"", row_file(file)
    with found.open() if found is not None else file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            if b'"bbox"' in tail + chunk:
                return True
            tail = chunk[-8:]
    return False


def _records(reading: Reading) -> Iterator[Record]:
    file = reading.look.path
    content = _load(file)
    names = {one["id"]: one.get("name") for one in _objects(content.get("categories")) if "id" in one}
    images = {one["id"]: one for one in _objects(content.get("images")) if "id" in one}
    boxes: dict[Any, list[list[float]]] = {image: [] for image in images}
    labels: dict[Any, list[str]] = {image: [] for image in images}
    for number, one in enumerate(_objects(content.get("annotations"))):
        example = f"annotation {one.get('id', number)}"
        box, name, image = one.get("bbox", []), names.get(one.get("category_id")), one.get("image_id")
        if not _is_usable(reading, one, example, known=image in images, name=name):
            continue
        x, y, width, height = box
        boxes[image].append([x, y, x + width, y + height])
        labels[image].append(str(name))
        if one.get("segmentation"):
            rule = "the segmentation of an annotation is not read, only its box"
            reading.notes.add(rule, example, "data.coco_segmentation")
    for image, one in images.items():
        size = {side: one[side] for side in ("width", "height") if one.get(side)}
        found = {"boxes": boxes[image], "labels": labels[image], "box_format": "xyxy", "source_format": NAME}
        yield str(image), {"id": str(image), "image": one.get("file_name"), **size, **found}, None


def _is_usable(reading: Reading, one: Mapping[str, Any], example: str, *, known: bool, name: object) -> bool:
    """Return whether an annotation can be used, and count it otherwise."""
    box = one.get("bbox")
    if not known:
        rule, code = "an annotation must belong to an image of the file", "data.coco_image_unknown"
    elif not isinstance(name, str):
        rule, code = "an annotation must have a category of the file", "data.coco_category_unknown"
    elif not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
        rule, code = "an annotation must have a box of four numbers", "data.coco_box_malformed"
    elif one.get("iscrowd"):
        rule, code = "an annotation must be one object, not a crowd", "data.coco_crowd"
    else:
        return True
    reading.skipped.add(rule, f"{example}: {json.dumps(box)}", code)
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(path: Path) -> bytes:
    """Return the content of a file, decompressed."""
    file = row_file(path)
    if file is None:
        return path.read_bytes()
    with file.open() as stream:
        return stream.read()


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        rule, remedy = f"the file must be valid JSON: {error}", "Correct the file."
        raise DataError("data.json_invalid", rule, place=file, remedy=remedy) from None
    return content if isinstance(content, dict) else {}


COCO = Format(
    name=NAME,
    description="a .json file with images, annotations with a bbox, and categories",
    matches=_matches,
    records=_records,
    files=lambda look: (look.path,),
    splits=lambda look: (),
)
