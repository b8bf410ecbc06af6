"""Pascal VOC: an XML file for each image, with corners that count from 1 and include the last pixel.

The lists of ImageSets/Main, such as train.txt and test.txt, are its splits.

The corners become exclusive: xmin 1 and xmax 10 are the pixels 0 to 9, so x1 is 0 and x2 is 10. A box that LabelImg
wrote from 0 on is therefore up to one pixel too far to the upper left.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from toolkit.data.formats.base import LEFT_OUT, Format, Look, Reading
from toolkit.data.formats.split_names import split_of
from toolkit.data.json_stream import Record
from toolkit.errors import DataError
from toolkit.identifiers import without_names

NAME = "Pascal VOC"
IMAGES = "JPEGImages"

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def _files(look: Look) -> tuple[Path, ...]:
    """Return the XML files of a file, of a folder, or of its folder Annotations."""
    if not look.is_folder:
        return (look.path,) if look.suffix == ".xml" else ()
    own = tuple(file for file in look.files if file.suffix.lower() == ".xml")
    if own:
        return own
    folder = next((one for one in look.folders if one.name == "Annotations"), None)
    return tuple(sorted(folder.glob("*.xml"))) if folder else ()


def _lists(look: Look) -> dict[str, Path]:
    """Return split -> list of its annotations. trainval is a split only without train, because it has those rows."""
    files = sorted((look.path / "ImageSets" / "Main").glob("*.txt")) if look.is_folder else []
    found = {file.stem: file for file in files if split_of(file.stem) or file.stem == "trainval"}
    if any(split_of(name) == "train" for name in found):
        found.pop("trainval", None)
    return found


def _names_of_split(reading: Reading) -> frozenset[str] | None:
    """Return the names of the annotations of a split, or None for all of them. Count what is only on one side.

    Raises:
        DataError: A list cannot be read.
    """
    if reading.split is None:
        return None
    lists = {split: _listed(file) for split, file in _lists(reading.look).items()}
    known, names = {one.stem for one in _files(reading.look)}, lists[reading.split]
    for number, name in enumerate(sorted(names), 1):
        if name not in known:
            place = f"name {number} of the list in order of name"
            reading.skipped.add("a name of the split must have an annotation", place, "data.voc_annotation_missing")
    for number, file in enumerate(_files(reading.look), 1):
        if not any(file.stem in one for one in lists.values()):
            place = f"file {number} in order of name"
            reading.notes.add("an annotation that is in no split is not read", place, "data.voc_annotation_in_no_split")
    return names


def _listed(file: Path) -> frozenset[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        rule, remedy = "the list of a split must be readable and UTF-8", "Convert the file to UTF-8."
        raise DataError(
            "data.voc_list_not_readable", rule, place=file, value=without_names(str(error)), remedy=remedy
        ) from None
    return frozenset(line.strip() for line in lines if line.strip())


def _matches(look: Look) -> bool:
    files = _files(look)
    return bool(files) and _is_voc(files[0])


def _is_voc(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"<annotation" in stream.read(1 << 12)


def _records(reading: Reading) -> Iterator[Record]:
    look = reading.look
    prefix = f"{IMAGES}/" if any(one.name == IMAGES for one in look.folders) else ""
    names = _names_of_split(reading)
    for number, file in enumerate(_files(look), 1):
        reading.move(f"file {number} in order of name")
        if names is not None and file.stem not in names:
            continue
        try:
            root = parse(file).getroot()
        except (ParseError, DefusedXmlException, OSError) as error:
            value = without_names(str(error))
            reading.skipped.add("an annotation must be a valid XML file", reading.at, "data.voc_not_xml", value)
            continue
        name = (root.findtext("filename") or "").strip()
        if not name:
            reading.skipped.add("an annotation must name its image", reading.at, "data.voc_image_missing")
            continue
        if (objects := _objects(root, reading)) is not None:
            yield file.stem, {"id": file.stem, "image": prefix + name, **_size(root), **objects}, None


def _size(root: Element) -> dict[str, int]:
    found = {side: _number(root.findtext(f"size/{side}")) for side in ("width", "height")}
    sizes = {side: int(value) for side, value in found.items() if value}
    return sizes if len(sizes) == 2 else {}


def _objects(root: Element, reading: Reading) -> dict[str, Any] | None:
    """Return the boxes and labels of a file, or None if an object cannot be used, which is counted."""
    boxes, labels = [], []
    for number, one in enumerate(root.iter("object"), 1):
        edges = [_number(one.findtext(f"bndbox/{edge}")) for edge in _EDGES]
        label = (one.findtext("name") or "").strip()
        place = f"{reading.at}, object {number}"
        if not label or None in edges:
            rule = f"an object must have a name and a box of four numbers {LEFT_OUT}"
            reading.skipped.add(rule, place, "data.voc_object_malformed")
            return None
        x1, y1, x2, y2 = (edge for edge in edges if edge is not None)
        boxes.append([x1 - 1, y1 - 1, x2, y2])
        labels.append(label)
    return {"boxes": boxes, "labels": labels, "box_format": "xyxy", "source_format": NAME}


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


VOC = Format(
    name=NAME,
    description="an .xml file with an annotation for each image, in a folder or in its folder Annotations",
    matches=_matches,
    records=_records,
    files=lambda look: (*_files(look), *_lists(look).values()),
    splits=lambda look: tuple(_lists(look)),
)
