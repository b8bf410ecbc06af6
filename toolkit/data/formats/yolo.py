"""YOLO: images in folders named images, and beside each a folder labels with a text file for each image.

A line is ``class cx cy w h`` in fractions of the image. Class names are in data.yaml, classes.txt or obj.names. An
image without a file of labels has no findings, as in Ultralytics.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.json_stream import Record
from toolkit.errors import DataError

NAME = "YOLO"
SPLITS = ("train", "val", "valid", "validation", "test")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm"})

_LISTS = ("classes.txt", "obj.names", "labels.txt")


def _matches(look: Look) -> bool:
    if not look.is_folder:
        return False
    labels = _label_files(look.path)
    if not labels:
        return False
    first = next((line for file in labels[:20] for line in _lines(file)), None)
    return first is not None and _numbers(first) is not None


def _label_files(root: Path) -> list[Path]:
    """Return the files of labels: in folders named labels, otherwise the text files of the folder itself."""
    nested = [file for folder in _folders(root, "labels") for file in sorted(folder.rglob("*.txt"))]
    return nested or [file for file in sorted(root.glob("*.txt")) if file.name not in _LISTS]


def _folders(root: Path, name: str) -> list[Path]:
    """Return the folders of this name in the root and one level below."""
    return sorted(folder for pattern in (name, f"*/{name}") for folder in root.glob(pattern) if folder.is_dir())


def _images(look: Look, split: str | None) -> list[Path]:
    folders = _folders(look.path, "images") or [look.path]
    found = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    return [file for file in found if split is None or split in _inside(file, look.path)]


def _inside(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts[:-1]


def _splits(look: Look) -> tuple[str, ...]:
    parts = {part for file in _images(look, None) for part in _inside(file, look.path)}
    return tuple(name for name in SPLITS if name in parts)


def _records(reading: Reading) -> Iterator[Record]:
    root = reading.look.path
    names, images = _class_names(root), _images(reading.look, reading.split)
    if not images:
        rule, remedy = "a YOLO dataset must have its images in a folder images beside labels", "Move them there."
        raise DataError("data.yolo_images_missing", rule, place=root, remedy=remedy)
    used = set()
    for image in images:
        file = _labels_of(image, root)
        used.add(file)
        boxes, labels = [], []
        if not file.is_file():
            rule = "an image without a file of labels has no findings"
            reading.notes.add(rule, image.name, "data.yolo_labels_missing")
        for number, line in enumerate(_lines(file), 1):
            if (found := _box(line, names, reading, f"{file.name}, line {number}: {line[:60]}")) is not None:
                labels.append(found[0])
                boxes.append(found[1])
        path = image.relative_to(root).as_posix()
        own = {"boxes": boxes, "labels": labels, "box_format": "xyxy unit", "source_format": NAME}
        yield path.rpartition(".")[0], {"image": path, **own}, None
    if reading.split is None:
        for file in set(_label_files(root)) - used:
            reading.skipped.add("a file of labels must have an image", file.name, "data.yolo_image_missing")


def _labels_of(image: Path, root: Path) -> Path:
    """Return the file of labels: the last folder images of the path is replaced by labels."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return root.joinpath(*parts)


def _box(line: str, names: Sequence[str], reading: Reading, example: str) -> tuple[str, list[float]] | None:
    """Return label and corners as fractions. A segment becomes its bounding box."""
    numbers = _numbers(line)
    if numbers is None:
        rule = "a line must be: class cx cy w h"
        reading.skipped.add(rule, example, "data.yolo_line_malformed")
        return None
    number, *rest = numbers
    if not 0 <= number < len(names):
        rule = f"a class must be a number from 0 to {len(names) - 1}"
        reading.skipped.add(rule, example, "data.yolo_class_unknown")
        return None
    if len(rest) > 4:
        reading.notes.add("a segment is read as its bounding box", example, "data.yolo_segment")
        xs, ys = rest[::2], rest[1::2]
        return names[int(number)], [min(xs), min(ys), max(xs), max(ys)]
    x, y, width, height = rest
    return names[int(number)], [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _numbers(line: str) -> list[float] | None:
    """Return class and four numbers, or class and three or more points. None for anything else."""
    try:
        found = [float(part) for part in line.split()]
    except ValueError:
        return None
    whole = bool(found) and found[0].is_integer()
    return found if whole and (len(found) == 5 or (len(found) >= 7 and len(found) % 2)) else None


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _class_names(root: Path) -> list[str]:
    """Return the class names in the order of their numbers.

    Raises:
        DataError: There are none.
    """
    for folder in (root, root.parent):
        for file in (folder / "data.yaml", folder / "dataset.yaml", *sorted(folder.glob("*.yaml"))):
            if names := _yaml_names(file):
                return names
        for name in _LISTS:
            if lines := _lines(folder / name):
                return lines
    rule = "a YOLO dataset must have class names in data.yaml or classes.txt"
    remedy = "Add classes.txt with one name for each line."
    raise DataError("data.yolo_class_names_missing", rule, place=root, remedy=remedy)


def _yaml_names(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        numbers = sorted(names)
        names = [names[number] for number in numbers] if numbers == list(range(len(numbers))) else []
    return [str(name) for name in names] if isinstance(names, list) else []


def _all_files(look: Look) -> tuple[Path, ...]:
    named = (look.path / name for name in ("data.yaml", *_LISTS))
    return (*_label_files(look.path), *(file for file in named if file.is_file()))


YOLO = Format(
    name=NAME,
    description="folders images and labels with a text file for each image, and data.yaml or classes.txt",
    matches=_matches,
    records=_records,
    files=_all_files,
    splits=_splits,
)
