"""Folders of images with a folder for each class, or with a table of file names, as ``datasets`` reads ImageFolder.

Unlike ``datasets``, a layout that can be read in two ways has no match: folders such as images and masks are not
classes, and a class has no folders inside.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from toolkit.data.embedded_images import EmbeddedImageStore, UnwrittenImages
from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.formats.readers import read_rows
from toolkit.data.formats.row_file import row_file
from toolkit.data.formats.split_names import split_of
from toolkit.data.json_stream import Record
from toolkit.errors import DataError
from toolkit.images.names import is_image_name

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

FILE_NAME = "file_name"

_NOT_CLASSES = frozenset(
    {
        *("image", "images", "img", "imgs", "jpegimages", "pics", "png", "jpg", "jpeg", "dicom", "dcm"),
        *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations", "gt"),
        *("groundtruth", "ground_truth", "boxes", "videos", "data", "dataset", "raw", "reports", "files"),
    }
)
"""Names of folders that are not those of classes."""

_MASK = re.compile(r"(.+?)[ _.-](?:masks?|seg|segmentation|gt|ground_?truth|annotations?)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Name of a mask, after that of its image."""

MAX_ENTRIES = 10_000
"""Entries of a folder that recognition looks at."""


def _is_image(file: Path) -> bool:
    return is_image_name(file.name)


def _inside(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if not one.name.startswith((".", "_")))


def _folders(folder: Path) -> list[Path]:
    return [one for one in _inside(folder) if one.is_dir()]


def _is_class(folder: Path) -> bool:
    """Return whether a folder has images directly in it, no folders, and a name that can be one of a class."""
    inside = _inside(folder)[:MAX_ENTRIES]
    has_images = any(_is_image(one) for one in inside)
    is_other = folder.name.lower() in _NOT_CLASSES or split_of(folder.name) is not None
    return has_images and not is_other and not any(one.is_dir() for one in inside)


def _has_classes(folder: Path) -> bool:
    folders = _folders(folder)
    return len(folders) >= 2 and all(map(_is_class, folders))


def lone_class(look: Look) -> Path | None:
    """Return the only folder of a class, or None. Folders of splits with the same one count once."""
    if not look.is_folder:
        return None
    parents = _split_folders(look) or (look.path,)
    inside = [one for parent in parents for one in _folders(parent)]
    is_lone = len({one.name.casefold() for one in inside}) == 1 and all(map(_is_class, inside))
    return inside[0] if is_lone else None


def other_than_class(look: Look) -> Path | None:
    """Return the folder that keeps folders of two classes or more from being read, or None."""
    splits = [one for one in look.folders if split_of(one.name)]
    if any(map(_has_classes, splits)):
        return next((one for one in look.folders if one not in splits), None)
    for parent in splits or ([look.path] if look.is_folder else []):
        classes = [one for one in _folders(parent) if _is_class(one)]
        if len(classes) >= 2:
            return next((one for one in _folders(parent) if one not in classes), None)
    return None


def _split_folders(look: Look) -> tuple[Path, ...]:
    """Return the folders of the splits, or nothing if a folder has another name."""
    folders = look.folders
    return folders if folders and all(split_of(one.name) for one in folders) else ()


def _has_class_folders(look: Look) -> bool:
    if not look.is_folder or look.container is not None:
        return False
    if splits := _split_folders(look):
        return any(map(_has_classes, splits)) and not any(_metadata(one) for one in splits)
    return _has_classes(look.path)


def _splits(look: Look) -> tuple[str, ...]:
    return tuple(folder.name for folder in _split_folders(look))


def _class_files(look: Look) -> tuple[Path, ...]:
    return tuple(file for file in sorted(look.path.rglob("*")) if file.is_file())


def _class_records(reading: Reading) -> Iterator[Record]:
    """Yield the images in order of split, class and name."""
    top = reading.look.path
    splits = _split_folders(reading.look)
    _check_case(top, splits or (top,))
    place_of = {file: f"file {number} in order of path" for number, file in enumerate(_class_files(reading.look), 1)}
    for split in splits or (top,):
        if splits and reading.split not in (None, split.name):
            continue
        _count_others(reading, split, place_of)
        for folder in _folders(split):
            for inner in _folders(folder):
                for file in filter(_is_image, sorted(inner.rglob("*"))):
                    rule = "an image must be directly in the folder of its class"
                    reading.skipped.add(rule, place_of[file], "data.image_too_deep")
            inside = _inside(folder)
            stems = {file.stem for file in inside if _is_image(file)}
            for file in inside:
                if file.is_file() and _is_image(file) and _image_of_mask(file.stem) in stems:
                    rule = "a mask beside its image is not read as an image of the class"
                    reading.notes.add(rule, place_of[file], "data.mask_is_no_image")
                elif file.is_file() and _is_image(file):
                    name = _name(file, top)
                    reading.move(place_of[file])
                    row = {"id": name, "image": name, "label": _class_name(folder)}
                    yield name, {**row, "split": split.name} if splits else row, None
                elif file.is_file():
                    reading.notes.add("a file that is not an image is not read", place_of[file], "data.not_an_image")


def _image_of_mask(stem: str) -> str | None:
    """Return the stem of the image of a mask, as BUSI names it, or None.

    >>> _image_of_mask("benign (4)_mask_1"), _image_of_mask("benign (4)")
    ('benign (4)', None)
    """
    found = _MASK.fullmatch(stem)
    return found[1] if found else None


def _check_case(top: Path, parents: Iterable[Path]) -> None:
    """Check that no class has two names, such as NORMAL in train and normal in test.

    Raises:
        DataError: Two folders of classes differ only in upper and lower case.
    """
    known: dict[str, Path] = {}
    for folder in (one for parent in parents for one in _folders(parent)):
        other = known.setdefault(_class_name(folder).casefold(), folder)
        if _class_name(other) != _class_name(folder):
            rule = "the names of two classes must differ in more than upper and lower case"
            value, remedy = (
                [shown_folder(other, top), shown_folder(folder, top)],
                "Give the folders of a class the same name.",
            )
            raise DataError("data.class_named_twice", rule, place=top, value=value, remedy=remedy)


def shown_folder(folder: Path, top: Path) -> str:
    """Return where a folder is. Its name is not shown, as a folder for each patient has the patient's name."""
    number = [one for one in sorted(folder.parent.iterdir()) if one.is_dir()].index(folder) + 1
    split = f"{folder.parent.name}, " if folder.parent != top and split_of(folder.parent.name) else ""
    return f"{split}folder {number} in order of name"


def _class_name(folder: Path) -> str:
    """Return the name of a class. macOS decomposes accents in the names of folders, other systems do not."""
    return unicodedata.normalize("NFC", folder.name)


def _count_others(reading: Reading, folder: Path, place_of: Mapping[Path, str]) -> None:
    for file in _inside(folder):
        if file.is_file() and _is_image(file):
            rule = "an image must be in the folder of its class"
            reading.skipped.add(rule, place_of[file], "data.image_without_class")


def _name(file: Path, top: Path) -> str:
    return file.relative_to(top).as_posix()


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _tables(look: Look) -> tuple[Path, ...]:
    """Return the tables of file names: of the folder, or of each split."""
    own = _metadata(look.path)
    found = (_metadata(folder) for folder in _split_folders(look))
    return (own,) if own else tuple(one for one in found if one is not None)


def _has_metadata(look: Look) -> bool:
    tables = _tables(look) if look.is_folder else ()
    return bool(tables) and all(_names_files(table) for table in tables)


def _names_files(table: Path) -> bool:
    first = next(_table_rows(table, UnwrittenImages()), None)
    return isinstance(first, dict) and FILE_NAME in first and "image" not in first


def _table_rows(table: Path, images: EmbeddedImageStore) -> Iterator[object]:
    file = row_file(table)
    if file is not None:
        yield from (row for _, row, _ in read_rows(file, images))


def _metadata_splits(look: Look) -> tuple[str, ...]:
    return tuple(table.parent.name for table in _tables(look) if table.parent != look.path)


def _metadata_records(reading: Reading) -> Iterator[Record]:
    """Yield the rows of the tables. An image is named relative to the folder of its table.

    Raises:
        DataError: One table has images of several splits, by their folders.
    """
    top = reading.look.path
    splits = dict[str, str]()
    for table in _tables(reading.look):
        if table.parent != top and reading.split not in (None, table.parent.name):
            continue
        for number, row in enumerate(_table_rows(table, reading.images)):
            reading.move(f"{_name(table, top)}, row {number}")
            path = row.get(FILE_NAME) if isinstance(row, dict) else None
            if not isinstance(row, dict) or not isinstance(path, str) or not path:
                rule = f"the row must have a {FILE_NAME}"
                reading.skipped.add(rule, reading.at, "data.file_name_missing")
                continue
            if table.parent == top and (split := split_of(path.replace("\\", "/").partition("/")[0])):
                splits.setdefault(split, path)
                if len(splits) > 1:
                    rule = "a table of file names must not have images of several splits in one list"
                    remedy = "Write one table into the folder of each split, or one file for each key of [data]."
                    raise DataError("data.splits_in_one_table", rule, place=table, value=list(splits), remedy=remedy)
            yield None, {**row, "image": _name(table.parent / path, top)}, None


CLASS_FOLDERS = Format(
    name="folder for each class",
    description="a folder with a folder of images for each class, optionally below folders train, val and test",
    matches=_has_class_folders,
    records=_class_records,
    files=_class_files,
    splits=_splits,
)
IMAGE_TABLE = Format(
    name="image folder with metadata",
    description="a folder of images with metadata.csv, metadata.jsonl or metadata.parquet and its column file_name",
    matches=_has_metadata,
    records=_metadata_records,
    files=_tables,
    splits=_metadata_splits,
)
