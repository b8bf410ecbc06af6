"""YOLO: images in folders named images, and beside each a folder labels with a text file for each image.

A line is ``class cx cy w h`` in fractions of the image, with points after it if data.yaml has kpt_shape. Class names
are in data.yaml, classes.txt or obj.names. An image without a file of labels has no findings, as in Ultralytics.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from toolkit.data.formats.base import LEFT_OUT, Format, Look, Reading
from toolkit.data.json_stream import Record
from toolkit.errors import DataError
from toolkit.identifiers import masked

NAME = "YOLO"
SPLITS = ("train", "val", "valid", "validation", "test")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm"})

_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML_SUFFIXES = (".yaml", ".yml")
_LISTS = ("classes.txt", "obj.names", "labels.txt")


def _matches(look: Look) -> bool:
    if not look.is_folder:
        return False
    labels = _label_files(look.path)
    if not labels:
        return False
    first = next((line for file in labels[:20] for line in _lines(file) or ()), None)
    return first is not None and _numbers(first) is not None


def _label_files(root: Path) -> list[Path]:
    """Return the files of labels: in folders named labels, otherwise the text files of the folder itself.

    CVAT writes images and labels into one folder such as obj_train_data, beside the names of the classes.
    """
    exported = sorted(root.glob("obj_*_data")) if (root / "obj.names").is_file() else []
    folders = _folders(root, "labels") or (exported if len(exported) == 1 else [])
    nested = [file for folder in folders for file in sorted(folder.rglob("*.txt"))]
    return [file for file in nested if file.name not in _LISTS] or [
        file for file in sorted(root.glob("*.txt")) if file.name not in _LISTS
    ]


def _folders(root: Path, name: str) -> list[Path]:
    """Return the folders of this name in the root and one level below."""
    return sorted(folder for pattern in (name, f"*/{name}") for folder in root.glob(pattern) if folder.is_dir())


def _images(look: Look, split: str | None) -> list[Path]:
    folders = _folders(look.path, "images") or [look.path]
    found = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    return found if split is None else _in_splits(found, [split], look.path)


def _in_splits(images: Iterable[Path], splits: Iterable[str], root: Path) -> list[Path]:
    """Return the images of these splits: those of their lists, otherwise those of their folders."""
    if lists := _lists(root):
        listed = {file for split in splits for file in _listed(lists[split], root)}
        return [file for file in images if file in listed]
    names = set(splits)
    return [file for file in images if not names.isdisjoint(_inside(file, root))]


def _inside(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parts[:-1]


def _splits(look: Look) -> tuple[str, ...]:
    """Return the splits: the lists of images that a YAML file names, otherwise the folders of images."""
    parts = {part for file in _images(look, None) for part in _inside(file, look.path)}
    return tuple(_lists(look.path)) or tuple(name for name in SPLITS if name in parts)


def _lists(root: Path) -> dict[str, Path]:
    """Return split -> list of images, such as ``train: train.txt`` in data.yaml."""
    found: dict[str, Path] = {}
    for file in (one for one in _name_files(root, root) if one.suffix in _YAML_SUFFIXES):
        content = _yaml(file)
        for split in SPLITS:
            value = content.get(split)
            if isinstance(value, str) and value.endswith(".txt"):
                places = (root / str(content.get("path") or "") / value, root / value)
                inside = [one for one in places if one.resolve().is_relative_to(root.resolve()) and one.is_file()]
                found |= {split: inside[0]} if inside else {}
    return found


def _listed(file: Path, root: Path) -> Iterator[Path]:
    """Yield the images of a list. A path can start from another folder, such as that of the author's machine."""
    for line in _lines(file) or ():
        parts = Path(line.replace("\\", "/")).parts
        tails = (root.joinpath(*parts[start:]) for start in range(len(parts)) if parts[start] != "/")
        yield next((one for one in tails if one.is_file()), root / line)


def _records(reading: Reading) -> Iterator[Record]:
    root = reading.look.path
    names, has_points = _class_names(root), _has_points(root)
    images, lists = _images(reading.look, reading.split), _lists(root)
    if not images:
        rule, remedy = "a YOLO dataset must have its images in a folder images beside labels", "Move them there."
        raise DataError("data.yolo_images_missing", rule, place=root, remedy=remedy)
    existing = set(images)
    for number, lost in enumerate(_listed(lists[reading.split], root) if reading.split in lists else (), 1):
        if lost not in existing:
            place = f"image {number} of the list"
            reading.skipped.add("an image of the list must exist", place, "data.yolo_listed_image_missing")
    everything = _images(reading.look, None)
    numbers = {image: number for number, image in enumerate(sorted(everything), 1)}
    for image in images:
        file = _labels_of(image, root)
        reading.move(f"image {numbers[image]} in order of path")
        found = _boxes(file, names, reading, has_points=has_points)
        if found is None:
            continue
        labels, boxes = [label for label, _ in found], [box for _, box in found]
        path = image.relative_to(root).as_posix()
        own = {"boxes": boxes, "labels": labels, "box_format": "xyxy unit", "source_format": NAME}
        yield path.rpartition(".")[0], {"image": path, **own}, None
    reading.move("")
    unread = set(everything) - set(_in_splits(everything, lists or SPLITS, root)) if reading.split else ()
    for image in sorted(unread):
        place = f"image {numbers[image]} in order of path"
        reading.notes.add("an image that is in no split is not read", place, "data.yolo_image_in_no_split")
    used = {_labels_of(image, root) for image in everything}
    for number, file in enumerate(sorted(_label_files(root)), 1):
        if file in used:
            continue
        parts = set(_inside(file, root)) & set(SPLITS)
        if reading.split is None or not parts or reading.split in parts or lists:
            place = f"file {number} of labels in order of path"
            reading.skipped.add("a file of labels must have an image", place, "data.yolo_image_missing")


def _labels_of(image: Path, root: Path) -> Path:
    """Return the file of labels: the last folder images of the path is replaced by labels."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return root.joinpath(*parts)


_Labelled = tuple[str, list[float]]


def _boxes(file: Path, names: Mapping[int, str], reading: Reading, *, has_points: bool) -> list[_Labelled] | None:
    """Return the boxes of a file of labels. None if a line cannot be used, which is counted."""
    if not file.is_file():
        rule = "an image without a file of labels has no findings"
        reading.notes.add(rule, reading.at, "data.yolo_labels_missing")
        return []
    lines, found = _lines(file), []
    if lines is None:
        rule = f"a file of labels must be readable and UTF-8 {LEFT_OUT}"
        reading.skipped.add(rule, f"labels of {reading.at}", "data.yolo_labels_not_readable")
        return None
    for number, line in enumerate(lines, 1):
        box = _box(line, names, reading, f"labels of {reading.at}, line {number}", has_points=has_points)
        if box is None:
            return None
        found.append(box)
    return found


def _box(line: str, names: Mapping[int, str], reading: Reading, place: str, *, has_points: bool) -> _Labelled | None:
    """Return label and corners as fractions. A segment becomes its bounding box."""
    numbers = _numbers(line, has_points=has_points)
    if numbers is None:
        rule = f"a line must be: class cx cy w h {LEFT_OUT}"
        reading.skipped.add(rule, place, "data.yolo_line_malformed", masked(line))
        return None
    number, *rest = numbers
    if number not in names:
        rule = f"a class must be a number from {min(names)} to {max(names)} {LEFT_OUT}"
        reading.skipped.add(rule, place, "data.yolo_class_unknown", number)
        return None
    name = names[int(number)]
    if has_points:
        rest = rest[:4]
    if len(rest) > 4:
        reading.notes.add("a segment is read as its bounding box", place, "data.yolo_segment")
        xs, ys = rest[::2], rest[1::2]
        return name, [min(xs), min(ys), max(xs), max(ys)]
    x, y, width, height = rest
    return name, [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _numbers(line: str, *, has_points: bool = False) -> list[float] | None:
    """Return class and four numbers, or class and three or more points. None for anything else.

    With ``has_points``, further numbers after the box are points of a pose.
    """
    try:
        found = [float(part) for part in line.split()]
    except ValueError:
        return None
    whole = bool(found) and found[0].is_integer()
    return (
        found
        if whole and (len(found) == 5 or (has_points and len(found) > 5) or (len(found) >= 7 and len(found) % 2))
        else None
    )


def _lines(file: Path) -> list[str] | None:
    """Return the lines of a file that are not blank, or None if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _class_names(root: Path) -> dict[int, str]:
    """Return number -> class name.

    Raises:
        DataError: There are none, a file cannot be used, or two files of a folder have different ones.
    """
    for folder in (root, root.parent):
        known = {file: names for file in _name_files(folder, root) if (names := _names_of(file))}
        if len({tuple(sorted(names.items())) for names in known.values()}) > 1:
            value = "; ".join(f"{file.name}: {', '.join(names.values())}" for file, names in known.items())
            rule, remedy = "the files of a YOLO dataset must have the same class names", "Remove or correct one."
            raise DataError("data.yolo_class_names_differ", rule, place=folder, value=value, remedy=remedy)
        if known:
            return next(iter(known.values()))
    rule = "a YOLO dataset must have class names in data.yaml or classes.txt"
    remedy = "Add classes.txt with one name for each line."
    raise DataError("data.yolo_class_names_missing", rule, place=root, remedy=remedy)


def _name_files(folder: Path, root: Path) -> list[Path]:
    """Return the files that can have class names. Beside the dataset, a YAML of another name must say its folder."""
    lists = [folder / name for name in _LISTS]
    yamls = sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))
    if folder == root:
        lists += [own / name for own in _folders(root, "labels") for name in _LISTS]
    else:
        yamls = [file for file in yamls if file.name in _YAMLS or _names_folder(file, root.name)]
    return [*yamls, *(file for file in lists if file.is_file())]


def _names_folder(file: Path, name: str) -> bool:
    content = _yaml(file)
    places = (content.get(key) for key in ("path", "train", "val", "test"))
    return any(name in Path(place).parts for place in places if isinstance(place, str))


def _names_of(file: Path) -> dict[int, str]:
    """Return number -> class name of a YAML file or of a list. Empty without any."""
    if file.suffix not in _YAML_SUFFIXES:
        return _listed_names(file)
    content = _yaml(file, strict=file.name in _YAMLS)
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(number, int) for number in names):
        return {}
    if isinstance(count, int) and count != len(names):
        rule, remedy = f"names must have as many classes as nc ({count})", "Correct names or nc."
        raise DataError("data.yolo_class_count_differs", rule, place=file, value=len(names), remedy=remedy)
    other = next((name for name in names.values() if isinstance(name, bool) or not isinstance(name, str | int)), "")
    if other != "":
        rule, code = "a class name must be a text", "data.yolo_class_name_not_text"
        remedy = 'Put it in quotation marks, such as "no", which YAML reads as false.'
        raise DataError(code, rule, place=file, value=other, remedy=remedy)
    return {number: str(names[number]) for number in sorted(names)}


def _listed_names(file: Path) -> dict[int, str]:
    """Return number -> class name of a list with one name for each line.

    Raises:
        DataError: A line between two names is blank, so that it is not certain whether it counts.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        rule, remedy = "the list of class names must be readable and UTF-8", "Convert the file to UTF-8."
        raise DataError("data.yolo_names_not_readable", rule, place=file, value=str(error), remedy=remedy) from None
    if "" in lines:
        rule, remedy = "the list of class names must have no blank line, because it can count", "Remove or fill it."
        raise DataError("data.yolo_name_blank", rule, place=f"{file}, line {lines.index('') + 1}", remedy=remedy)
    return dict(enumerate(lines))


def _has_points(root: Path) -> bool:
    """Return whether lines have the points of a pose after the box."""
    return any("kpt_shape" in _yaml(file) for folder in (root, root.parent) for file in _name_files(folder, root))


def _yaml(file: Path, *, strict: bool = False) -> dict[str, Any]:
    """Return the content of a YAML file. Empty if it has another content.

    Raises:
        DataError: The file is invalid, and ``strict`` says that it belongs to the dataset.
    """
    if file.suffix not in _YAML_SUFFIXES:
        return {}
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if not strict:
            return {}
        rule, value = "the file must be valid YAML", " ".join(str(error).split())
        raise DataError("data.yolo_yaml_invalid", rule, place=file, value=value, remedy="Correct the file.") from None
    return content if isinstance(content, dict) else {}


def _all_files(look: Look) -> tuple[Path, ...]:
    """Return the files that decide the rows: labels, images, and all that can have class names."""
    root = look.path
    names = (file for folder in (root, root.parent) for file in _name_files(folder, root))
    return tuple(dict.fromkeys((*_label_files(root), *_images(look, None), *_lists(root).values(), *names)))


YOLO = Format(
    name=NAME,
    description="folders images and labels with a text file for each image, and data.yaml or classes.txt",
    matches=_matches,
    records=_records,
    files=_all_files,
    splits=_splits,
)
