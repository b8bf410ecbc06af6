"""The images that a row names: paths, names without a suffix, URLs, lists, objects, numbered columns and slices."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from toolkit.data.cells import (
    IMAGE_OUTSIDE,
    NO_IMAGE,
    cell,
    check_unicode,
    fold,
    is_missing,
    name_of,
    number_of,
    text_of,
    without_blanks,
)
from toolkit.data.image_columns import looks_like_path, numbered_series
from toolkit.data.json_stream import Row
from toolkit.data.literals import decoded
from toolkit.data.task import RowOrigin
from toolkit.errors import ImageError, MissingImage, RowProblem
from toolkit.identifiers import described
from toolkit.images import image_ref, names
from toolkit.images.ref import AXES, ImageRef, contained_path, is_volume, root_folder

PATH_KEYS = ("path", "imagepath", "filepath", "filename", "file", "image", "imagename", "img", "url", "src")
"""Keys of an object that names an image, without case and underscores. The first one with a value is used."""
SLICE, AXIS = "slice", "axis"
"""Columns and keys of the slices of a NIfTI volume."""

SEPARATORS = (";", "|", ",", "\n", " ")
"""Separators of several image names in one cell, if no file has the whole cell as its name."""

_FRAME = re.compile(rf"(.+)#(?:({'|'.join(AXES)})=)?(\d{{1,6}})")
_WHOLE = re.compile(r"\d+\.0+", re.ASCII)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+-]+)://", re.ASCII)


def read_images(name: str, row: Row, origin: RowOrigin) -> tuple[ImageRef, ...]:
    """Return all images of a row in order. A row whose image is missing or an empty list has none.

    A cell has one path, several with a separator, a list, or objects such as ``{"image_path": …}``. Columns like
    ``image_1``, ``image_2`` are read in order. ``names.find`` says which file a name means. A name that means no file,
    or several, is kept, and opening it raises an error with the nearest names.

    Raises:
        RowProblem: There are too many images, a value does not name an image, or a path leaves the image root.
    """
    value = cell(row, origin, "image")
    if type(value) is str and (image := _plain_image(value, row, origin)) is not None:
        return (image,)
    place = str(origin.file)
    images = [image for value in _values(row, origin) for image in _images_of(value, row, origin, place)]
    if len(images) > origin.max_images:
        rule, remedy = "the row must have at most images.max_per_question images", "Raise images.max_per_question."
        raise RowProblem("data.too_many_images", rule, place=place, value=len(images), remedy=remedy)
    return tuple(images)


def read_one_image(name: str, row: Row, origin: RowOrigin) -> ImageRef:
    """Return the image of a row that must have exactly one.

    Raises:
        RowProblem: As in ``read_images``, or the row has no image.
    """
    images = read_images(name, row, replace(origin, max_images=1))
    if not images:
        raise RowProblem(*NO_IMAGE, place=str(origin.file), value=described(cell(row, origin, "image")))
    return images[0]


def named_image(text: str, root: str) -> ImageRef:
    """Return the image that a name means, such as a mask. With the code ``names.NOT_FOUND``, it means no file.

    Raises:
        ImageError: The path leaves the root.
    """
    try:
        return _found(text, root)
    except _NotFound as missing:
        return missing.ref
    except _UnusableUrl:
        return ImageRef(Path(root) / "url", found=(names.NOT_FOUND,))


def forget_names() -> None:
    """Search every image name again, for a new scan of rows."""
    _found.cache_clear()
    names.forget()


def _plain_image(value: str, row: Row, origin: RowOrigin) -> ImageRef | None:
    """Return the image of a row with one file in one cell, the usual case, which this makes faster."""
    if len(numbered_series(origin.column["image"], tuple(row))) > 1:
        return None
    try:
        image = _found(value, str(origin.image_root))
    except (_NotFound, _UnusableUrl, ImageError):
        return None  # with an error, or the value needs a closer look
    return None if is_volume(image.path) else image


def _values(row: Row, origin: RowOrigin) -> Iterator[Any]:
    """Yield the cells that name images, without missing ones: the column, and its later numbers if it is numbered."""
    column = origin.column.get("image")
    for name in () if column is None else numbered_series(column, tuple(row)):
        value = row.get(name)
        if not is_missing(value):
            yield value


def _images_of(value: Any, row: Row, origin: RowOrigin, place: str) -> list[ImageRef]:
    value = decoded(value)
    if isinstance(value, list | tuple):
        values = [one for one in value if not is_missing(one)]
        if len(values) < len(value) and values:
            raise RowProblem(
                *NO_IMAGE, place=place, value=described(value), remedy="Remove the empty entries of the list."
            )
    else:
        values = [value]
    parts = [part for one in values for part in _parts_of(one, row, origin, place)]
    volumes = sum(is_volume(ref.path) for ref, _, _ in parts)
    return [image for ref, slices, axis in parts for image in _slices_of(ref, slices, axis, place, volumes)]


Part = tuple[ImageRef, Any, Any]
"""An image, and the value of its slice and axis."""


def _parts_of(value: Any, row: Row, origin: RowOrigin, place: str) -> Iterator[Part]:
    slices, axis = (None if column is None else row.get(column) for column in _slice_columns(tuple(row)))
    if isinstance(value, Mapping):
        keys = {fold(str(key)): one for key, one in reversed(list(value.items()))}
        slices, axis = keys.get(SLICE, slices), keys.get(AXIS, axis)
        value = _path_in(keys, value, place)
    if isinstance(value, bool | bytes) or not isinstance(value, str | int | float):
        rule = "an image must be named by a text, or by an object with a path"
        remedy = f"Use one of the keys {', '.join(PATH_KEYS[:3])}."
        raise RowProblem("data.image_not_text", rule, place=place, value=described(value), remedy=remedy)
    text = without_blanks(value) if isinstance(value, str) else name_of(value)
    check_unicode(text)
    for ref in _named(text, str(origin.image_root), place):
        yield ref, slices, axis


@lru_cache(maxsize=1 << 8)
def _slice_columns(columns: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Return the columns of slice and axis, in any case. None if there is none."""
    folded = {column.lower(): column for column in reversed(columns)}
    return folded.get(SLICE), folded.get(AXIS)


def _path_in(keys: Mapping[str, Any], value: Mapping[Any, Any], place: str) -> Any:
    """Return the path in an object, which may have it under several keys if they agree."""
    found = [keys[key] for key in PATH_KEYS if isinstance(keys.get(key), str) and not is_missing(keys[key])]
    found = [one for one in found if not _URL.match(one)] or found
    if not found:
        rule = "an object of an image must have a path"
        remedy = f"Use one of the keys {', '.join(PATH_KEYS[:3])}."
        raise RowProblem("data.image_object_without_path", rule, place=place, value=described(value), remedy=remedy)
    if len({re.split(r"[/\\]", one)[-1] for one in found}) > 1:
        rule = "the paths in an object of an image must name one file"
        raise RowProblem(
            "data.image_object_ambiguous", rule, place=place, value=described(found), remedy="Remove all but one."
        )
    return found[0]


def _named(text: str, root: str, place: str) -> tuple[ImageRef, ...]:
    """Return the images that a text names: one, or several with a separator."""
    try:
        whole = _found(text, root)
    except _NotFound as missing:
        whole = missing.ref
    except ImageError as error:
        raise RowProblem(*IMAGE_OUTSIDE, place=place, value=error.value, remedy=_inside(text, root)) from None
    except _UnusableUrl as problem:
        raise MissingImage(
            problem.code, problem.rule, place=place, value=described(text), remedy=problem.remedy
        ) from None
    if names.NOT_FOUND not in whole.found:
        return (whole,)
    for separator in SEPARATORS:
        parts = [part.strip() for part in text.split(separator) if part.strip()]
        # A part without a known suffix could be the piece of a file name with a separator in it.
        if len(parts) > 1 and (all(map(looks_like_path, parts)) or all(_means_file(part, root) for part in parts)):
            images = [_named(part, root, place)[0] for part in parts]
            return tuple(replace(image, found=(*image.found, names.CELL_SPLIT)) for image in images)
    return (whole,)


def _inside(text: str, root: str) -> str:
    """Return the remedy for a path that leaves the root, such as an absolute one of another machine."""
    found = names.find_in_tree(os.path.normpath(root), names.last_part(text), whole=True)
    if not found:
        return "Set data.image_root to the folder that all images are in."
    return f"Write paths below data.image_root: {root} has a file with the same name, {_depth(found[0])}."


def _depth(path: str) -> str:
    """Return where a file is, without the names of its folders, which can be those of patients."""
    folders = path.count("/")
    return f"{folders} {'folder' if folders == 1 else 'folders'} below it" if folders else "directly in it"


def _means_file(text: str, root: str) -> bool:
    try:
        _found(text, root)
    except (_NotFound, _UnusableUrl, ImageError):
        return False
    return True


class _NotFound(Exception):
    """A name that means no file, or several. ``ref`` is what it says literally. Not cached: the file may be added."""

    def __init__(self, ref: ImageRef) -> None:
        super().__init__()
        self.ref = replace(ref, found=(names.NOT_FOUND,))


class _UnusableUrl(Exception):
    """A URL that does not mean exactly one local file."""

    def __init__(self, code: str, rule: str, remedy: str) -> None:
        super().__init__(code, rule, remedy)
        self.code, self.rule, self.remedy = code, rule, remedy


@lru_cache(maxsize=1 << 14)
def _found(text: str, root: str) -> ImageRef:
    """Return a cached reference. Rows of one image are often adjacent, and building the path is slow.

    Raises:
        ImageError: The path leaves the root.
        _NotFound: The name means no file, or several.
        _UnusableUrl: The URL means no local file, or several.
    """
    folder, name = _root_folder(root), text
    if ":" in text:
        if text.startswith("data:"):
            rule, remedy = "an image must be a file, not a data URL", "Write the image to a file, and name it."
            raise _UnusableUrl("data.image_is_data_url", rule, remedy)
        url = _URL.match(text)
        if url is not None and url[1].lower() != "file":
            return image_ref(_local_file(text, root), root, "", found=(names.URL_LOCAL,))
        name = text if url is None else unquote(urlsplit(text).path)
    path = contained_path(name, folder, "")
    found = _look_up(path, folder) or _with_frame(text, root) or _with_slashes(text, folder) or _decoded(text, folder)
    if found is not None:
        return found
    if _WHOLE.fullmatch(text):  # pandas converts integers to floats if one is missing
        return _found(text.partition(".")[0], root)
    raise _NotFound(ImageRef(Path(path)))


_root_folder = lru_cache(maxsize=16)(root_folder)


def _look_up(path: str, folder: str) -> ImageRef | None:
    below = path[len(folder) :].replace(os.sep, "/") if os.sep != "/" else path[len(folder) :]
    found = names.find(folder[:-1], below)
    return None if found is None else ImageRef(Path(folder + found.path), found=found.ways)


def _with_frame(text: str, root: str) -> ImageRef | None:
    """Return the frame or slice that a name such as ``ct.nii.gz#42`` has at its end."""
    match = _FRAME.fullmatch(text) if "#" in text else None
    if match is None:
        return None
    image = _found(match[1], root)
    return replace(image, frame=int(match[3]), axis=match[2] or ("axial" if is_volume(image.path) else ""))


def _with_slashes(text: str, folder: str) -> ImageRef | None:
    if "\\" not in text:
        return None
    found = _look_up(contained_path(text.replace("\\", "/"), folder, ""), folder)
    return None if found is None else replace(found, found=(names.BACKSLASHES, *found.found))


def _decoded(text: str, folder: str) -> ImageRef | None:
    """Return the file of a name in which blanks and other characters are encoded as in a URL."""
    if "%" not in text or (plain := unquote(text)) == text:
        return None
    found = _look_up(contained_path(plain, folder, ""), folder)
    return None if found is None else replace(found, found=(names.PERCENT_DECODED, *found.found))


def _local_file(url: str, root: str) -> str:
    """Return the only file below the root with the last part of a URL as its name."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    paths = names.find_in_tree(os.path.normpath(root), name) if name else []
    if len(paths) == 1:
        return paths[0]
    remedy = f"Download the images and set data.image_root to their folder. {root} has no file with this name."
    rule = "an image URL is never downloaded, and its last part must name a file below data.image_root"
    if paths:
        rule = "the last part of an image URL must name only one file below data.image_root"
        remedy = f"Name the path of the file instead. {len(paths)} files have this name."
    raise _UnusableUrl("data.image_url_ambiguous" if paths else "data.image_is_url", rule, remedy)


def _slices_of(ref: ImageRef, slices: Any, axis: Any, place: str, volumes: int) -> list[ImageRef]:
    """Return a volume as one image per slice. Other images are returned unchanged: their rows may have such columns."""
    if not is_volume(ref.path) or is_missing(slices):
        return [ref]
    if ref.axis:
        rule, remedy = "the slice must be named once", "Remove it from the path, or from the column slice."
        raise RowProblem("data.slice_named_twice", rule, place=place, value=slices, remedy=remedy)
    numbers = _slice_numbers(slices, place)
    if volumes > 1 and len(numbers) > 1:
        rule, remedy = "several slices must be of one volume", 'Write each slice into its path, such as "ct.nii.gz#42".'
        raise RowProblem("data.slices_of_several_volumes", rule, place=place, value=slices, remedy=remedy)
    name = text_of(axis).lower() or "axial"
    if name not in AXES:
        rule, remedy = "the axis of a slice must be axial, coronal or sagittal", "Correct the column axis."
        raise RowProblem("data.slice_axis_unknown", rule, place=place, value=axis, remedy=remedy)
    return [replace(ref, frame=number, axis=name) for number in numbers]


def _slice_numbers(value: Any, place: str) -> list[int]:
    """Return slice numbers from a number, a list, or a text with separators."""
    found = decoded(value)
    if isinstance(found, str):
        found = re.split(r"[;,|]", found)
    values = [number_of(one) for one in (found if isinstance(found, list | tuple) else [found])]
    if not values or not all(one.isascii() and one.isdecimal() for one in values):
        rule, remedy = "a slice must be a number from 0, or a list of them", "Correct the column slice."
        raise RowProblem("data.slice_not_number", rule, place=place, value=value, remedy=remedy)
    return [int(one) for one in values]
