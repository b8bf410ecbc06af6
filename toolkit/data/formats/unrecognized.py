"""The error of a source without a known format: what was seen, and what the nearest format needs."""

import re
from collections import Counter
from collections.abc import Sequence

from toolkit.data.formats.base import Format, Look
from toolkit.data.formats.image_folder import lone_class, other_than_class, shown_folder
from toolkit.errors import DataError
from toolkit.images.names import is_image_name

MAX_NAMES = 12


def unrecognized(look: Look, formats: Sequence[Format]) -> DataError:
    """Return the error of a source that matches none of the formats."""
    if lone := lone_class(look):
        rule = "a folder for each class must have at least two classes, because a single class cannot be classified"
        remedy = "Add the folder of another class, or name a file of rows for another task."
        return DataError(
            "data.folder_with_one_class", rule, place=look.path, value=shown_folder(lone, look.path), remedy=remedy
        )
    if other := other_than_class(look):
        rule = "every folder must be a split, or a class with images directly in it and without folders inside"
        value, remedy = shown_folder(other, look.path), "Move or remove this folder."
        return DataError("data.folder_is_no_class", rule, place=look.path, value=value, remedy=remedy)
    if look.suffix == ".zip":
        rule, remedy = "a .zip must have a file of rows, which is text", "Extract it, and name its folder."
        return DataError("data.archive_without_rows", rule, place=look.path, remedy=remedy)
    seen, words = _seen(look)
    nearest = _nearest(words, formats)
    known = ", ".join(one.name for one in formats)
    what = "folder" if look.is_folder else "file"
    rule = f"the {what} must have one of the formats: {known}"
    remedy = f"The nearest one is {nearest.name}, which needs {nearest.description}." if nearest else _CONVERT
    if look.suffix in _SPREADSHEETS:
        rule, remedy = "a spreadsheet must be saved as a table of text", 'Save the sheet as "CSV UTF-8" (.csv).'
    code = "data.folder_without_rows" if look.is_folder else "data.file_type_unknown"
    return DataError(code, rule, place=look.path, value=_Seen(seen), remedy=remedy)


_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_USUAL = frozenset(
    {
        "images",
        "image",
        "img",
        "labels",
        "annotations",
        "masks",
        "train",
        "training",
        "val",
        "valid",
        "validation",
        "test",
        "testing",
        "data",
    }
)
_CONVERT = "Convert it to one of them, or name another source."


class _Seen(str):
    """A description that an error shows without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _seen(look: Look) -> tuple[str, set[str]]:
    """Return a description of the content, and the words that formats are compared by."""
    if look.is_folder:
        suffixes = Counter(file.suffix.lower() or "no suffix" for file in look.files)
        kinds = [f"{count:,} {suffix}" for suffix, count in suffixes.most_common(MAX_NAMES)]
        names = [one.name for one in look.folders]
        words = {word for name in (*suffixes, *names[:MAX_NAMES]) for word in re.findall(r"\w+", name.lower())}
        words |= {"images", "class"} if any(is_image_name(suffix) for suffix in suffixes) else set()
        # One folder for each patient has names of patients, so only usual names are shown.
        usual = [f"{name}/" for name in names if name.lower() in _USUAL]
        others = len(names) - len(usual)
        more = [f"{others:,} {'folder' if others == 1 else 'folders'} of other names"] if others else []
        return ", ".join([*kinds, *usual, *more]) or "an empty folder", words
    if look.members:
        keys = list(look.members)
        return f"a JSON object with the keys {', '.join(keys[:MAX_NAMES])}", set(map(str.lower, keys))
    return look.path.suffix or "no suffix", set()


def _nearest(words: set[str], formats: Sequence[Format]) -> Format | None:
    """Return the format whose description has the most of the words, or None if none has one."""
    scores = [len(words & set(re.findall(r"\w+", one.description.lower()))) for one in formats]
    best = max(range(len(formats)), key=scores.__getitem__)
    return formats[best] if scores[best] else None
