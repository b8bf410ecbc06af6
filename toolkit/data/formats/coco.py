"""COCO instances and captions: one JSON object with images, annotations and categories.

Lin et al. 2014, arXiv 1405.0312, and Chen et al. 2015, arXiv 1504.00325.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.formats.base import LEFT_OUT, Format, Look, Reading
from toolkit.data.formats.row_file import row_file
from toolkit.data.formats.zip_images import with_images_of
from toolkit.data.json_stream import KeyRepeated, Record, checked_object
from toolkit.errors import DataError
from toolkit.identifiers import described, shown_numbers
from toolkit.scoring.regions import TOLERANCE

NAME = "COCO instances"
CAPTIONS = "COCO captions"

_CHUNK = 1 << 20


def _matches(look: Look) -> bool:
    images, annotations = (_objects(look.members.get(key)) for key in ("images", "annotations"))
    if annotations and not any("bbox" in one for one in annotations):
        return False  # captions or keypoints
    if any({"image_id", "bbox"} <= one.keys() for one in annotations):
        return True
    return _are_images(images) and _has_key(look.path, b'"bbox"')


def _matches_captions(look: Look) -> bool:
    images, annotations = (_objects(look.members.get(key)) for key in ("images", "annotations"))
    if annotations:
        return _are_images(images) and all({"image_id", "caption"} <= one.keys() for one in annotations)
    are_elsewhere = not any("caption" in one for one in images)
    return _are_images(images) and are_elsewhere and _has_key(look.path, b'"caption"')


def _are_images(images: list[Mapping[str, Any]]) -> bool:
    return bool(images) and all({"id", "file_name"} <= one.keys() for one in images)


def _numbered(value: Any) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the objects of a list with their positions in it."""
    listed = enumerate(value) if isinstance(value, list) else ()
    return [(number, one) for number, one in listed if isinstance(one, dict)]


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _has_key(file: Path, key: bytes) -> bool:
    """Return whether the file has a key of annotations, which can come after the first MB."""
    tail, found = b"", row_file(file)
    with found.open() if found is not None else file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            if key in tail + chunk:
                return True
            tail = chunk[-len(key) :]
    return False


def _records(reading: Reading) -> Iterator[Record]:
    file = reading.look.path
    content = _load(file)
    _count_others(content, reading)
    names = {number: one.get("name") for number, one in _by_id(content, "categories", "name", file).items()}
    images = _by_id(content, "images", "file_name", file)
    _check_boxes(content, images, file)
    boxes: dict[str | None, list[list[float]]] = {image: [] for image in images}
    labels: dict[str | None, list[str]] = {image: [] for image in images}
    left_out, place_of = set(), _places(content)
    for number, one in _numbered(content.get("annotations")):
        place = f"annotations[{number}]"
        box, image = one.get("bbox", []), _id(one, "image_id")
        name = names.get(_id(one, "category_id"))
        if image in left_out:
            continue
        if not _is_usable(reading, one, place, known=image in images, name=name):
            left_out.add(image)
            continue
        x, y, width, height = box
        boxes[image].append([x, y, x + width, y + height])
        labels[image].append(str(name))
        if one.get("segmentation"):
            rule = "the segmentation of an annotation is not read, only its box"
            reading.notes.add(rule, place, "data.coco_segmentation")
    for image, one in images.items():
        if image in left_out:
            continue
        reading.move(f"images[{place_of[image]}]")
        size = {side: one[side] for side in ("width", "height") if one.get(side)}
        found = {"boxes": boxes[image], "labels": labels[image], "box_format": "xyxy", "source_format": NAME}
        yield str(image), {"id": str(image), "image": one.get("file_name"), **size, **found}, None


def _places(content: Mapping[str, Any]) -> dict[str | None, int]:
    """Return image id -> position in the list of images."""
    return {_id(one, "id"): number for number, one in reversed(_numbered(content.get("images")))}


def _caption_records(reading: Reading) -> Iterator[Record]:
    """Yield a row for each caption."""
    content = _load(reading.look.path)
    _count_others(content, reading)
    images, used = _by_id(content, "images", "file_name", reading.look.path), set()
    for number, one in _numbered(content.get("annotations")):
        name, image = _id(one, "id") or str(number), _id(one, "image_id")
        if image not in images:
            rule = "an annotation must belong to an image of the file"
            reading.skipped.add(rule, f"annotations[{number}]", "data.coco_image_unknown")
            continue
        used.add(image)
        reading.move(f"annotations[{number}]")
        found = {"image": images[image].get("file_name"), "caption": one.get("caption")}
        yield name, {"id": name, "image_id": image, **found, "source_format": CAPTIONS}, None
    place_of = _places(content)
    for image in images:
        if image not in used:
            place = f"images[{place_of[image]}]"
            reading.notes.add("an image without a caption gives no row", place, "data.coco_caption_missing")


def _count_others(content: Mapping[str, Any], reading: Reading) -> None:
    """Count entries that are not objects, and images without an id, which would be left out."""
    for key in ("images", "annotations"):
        listed = content.get(key)
        for number, one in enumerate(listed if isinstance(listed, list) else []):
            if not isinstance(one, dict):
                rule = f"an entry of {key} must be an object"
                reading.skipped.add(rule, f"{key}[{number}]", "data.coco_not_object", described(one))
            elif key == "images" and _id(one, "id") is None:
                rule = "an image must have an id, which is a text or a whole number"
                reading.skipped.add(rule, f"{key}[{number}]", "data.coco_id_missing")


def _by_id(content: Mapping[str, Any], key: str, name: str, file: Path) -> dict[str | None, Mapping[str, Any]]:
    """Return the objects of a list by their id.

    Raises:
        DataError: Two objects with different names have one id, so that it is unknown whose annotations these are.
    """
    found: dict[str | None, Mapping[str, Any]] = {}
    for place, one in _numbered(content.get(key)):
        if (number := _id(one, "id")) is None:
            continue
        other = found.setdefault(number, one)
        if other.get(name) != one.get(name):
            value = f"{key}[{place}]"
            rule, remedy = f"{key} must have different ids", "Number them again, and their annotations."
            raise DataError("data.coco_id_repeated", rule, place=file, value=value, remedy=remedy)
    return found


def _check_boxes(content: Mapping[str, Any], images: Mapping[str | None, Mapping[str, Any]], file: Path) -> None:
    """Check that the boxes are [x, y, width, height] in pixels, as far as all boxes of the file can say it.

    Raises:
        DataError: They are fractions, or corners: as corners all are in their images, as COCO's boxes some are not.
    """
    numbers, outside, corners = [], [], True
    for one in _objects(content.get("annotations")):
        box, image = one.get("bbox"), _id(one, "image_id")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
            continue
        numbers += box
        size = images.get(image, {})
        width, height = size.get("width"), size.get("height")
        if not (_is_number(width) and _is_number(height) and width and height):
            continue
        x, y, z, w = box
        corners &= x < z <= width + TOLERANCE and y < w <= height + TOLERANCE
        if x + z > width + TOLERANCE or y + w > height + TOLERANCE:
            outside.append(f"{box} in {width} x {height}")
    layout = "boxes of COCO must be [x, y, width, height] in pixels"
    if numbers and max(map(abs, numbers)) <= 1 and any(number != int(number) for number in numbers):
        remedy = "Multiply the boxes by the width and height of their images."
        raise DataError("data.coco_boxes_are_fractions", layout, place=file, value=numbers[:4], remedy=remedy)
    if outside and corners:
        rule = f"{layout}. Read so, {len(outside):,} leave their image, but as corners [x1, y1, x2, y2] all are inside"
        remedy = "Write x2 - x1 and y2 - y1 as the last two numbers."
        raise DataError("data.coco_boxes_are_corners", rule, place=file, value=outside[0], remedy=remedy)


def _id(one: Mapping[str, Any], key: str) -> str | None:
    """Return an id as text, because some tools write the numbers of images as numbers and those of boxes as texts.

    pandas writes whole numbers with a decimal point if one is missing.
    """
    value = one.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _is_usable(reading: Reading, one: Mapping[str, Any], place: str, *, known: bool, name: object) -> bool:
    """Return whether an annotation can be used, and count it otherwise. Its image is then no row."""
    box = one.get("bbox")
    if not known:
        rule, code = "an annotation must belong to an image of the file", "data.coco_image_unknown"
    elif not isinstance(name, str):
        rule, code = f"an annotation must have a category of the file {LEFT_OUT}", "data.coco_category_unknown"
    elif not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
        rule, code = f"an annotation must have a box of four numbers {LEFT_OUT}", "data.coco_box_malformed"
    elif one.get("iscrowd"):
        rule, code = f"an annotation must be one object, not a crowd {LEFT_OUT}", "data.coco_crowd"
    else:
        return True
    reading.skipped.add(rule, place, code, shown_numbers(box))
    return False


def _is_number(value: object) -> bool:
    # The comparison is false for NaN. math.isfinite would fail for an integer beyond the range of floats.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _read(path: Path) -> bytes:
    """Return the content of a file, decompressed."""
    file = row_file(path)
    if file is None:
        return path.read_bytes()
    with file.open() as stream:
        return stream.read()


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_read(file), object_pairs_hook=checked_object)
    except KeyRepeated as error:
        rule, remedy = "a record must have each key once", "Remove one of the two values."
        raise DataError("data.key_repeated", rule, place=file, value=str(error), remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        rule, remedy = f"the file must be valid JSON: {error}", "Correct the file."
        raise DataError("data.json_invalid", rule, place=file, remedy=remedy) from None
    return content if isinstance(content, dict) else {}


COCO = Format(
    name=NAME,
    description="a .json file with images, annotations with a bbox, and categories",
    matches=_matches,
    records=lambda reading: with_images_of(reading.look.path, _records(reading), reading.images),
    files=lambda look: (look.path,),
    splits=lambda look: (),
)
COCO_CAPTIONS = Format(
    name=CAPTIONS,
    description="a .json file with images, and annotations with a caption",
    matches=_matches_captions,
    records=lambda reading: with_images_of(reading.look.path, _caption_records(reading), reading.images),
    files=lambda look: (look.path,),
    splits=lambda look: (),
)
