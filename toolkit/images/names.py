"""Find the file that an image name means, with one directory listing per folder instead of one call per candidate.

A name means a file if it is equal to the file's name. Otherwise it means the only file whose name is equal without case
and Unicode normalisation, or the only image whose name is equal without its suffix.
"""

import os
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rapidfuzz import fuzz, process

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".dcm", ".dicom", ".dic", ".ima", ".nii", ".nii.gz"),
)
"""File suffixes that an image name may lack, in lower case."""

SUFFIX_ADDED = "data.image_suffix_added"
CASE_CHANGED = "data.image_case_changed"
UNICODE_CHANGED = "data.image_unicode_changed"
BACKSLASHES = "data.image_backslashes"
URL_LOCAL = "data.image_url_local"
CELL_SPLIT = "data.image_cell_split"
PERCENT_DECODED = "data.image_percent_decoded"
NOT_FOUND = "data.image_not_found"

WAYS = {
    SUFFIX_ADDED: "image names without a suffix were found as the only file of that name with one",
    CASE_CHANGED: "image names were found as the only file whose name differs in upper and lower case",
    UNICODE_CHANGED: "image names were found as the only file whose name has another Unicode normalisation",
    BACKSLASHES: "backslashes in image names were read as folders",
    URL_LOCAL: "image URLs were found as the only file of that name below data.image_root (nothing is downloaded)",
    CELL_SPLIT: "several image names in one cell were separated",
    PERCENT_DECODED: "percent signs in image names were decoded as in a URL (%20 is a blank)",
}
"""Code of a way to find a file -> what was done, for the report of the rows. NOT_FOUND is not among them."""
MAX_SUGGESTIONS = 100
"""Missing names per folder with a suggestion. Each compares all names of the folder."""
SIMILAR = 70
"""Least similarity of a suggestion, from 0 to 100 (rapidfuzz)."""

list_names = os.listdir  # a Path for each name would cost ten times as much


@dataclass(frozen=True, slots=True)
class Found:
    """The path below the root with ``/``, and the codes of ``WAYS`` by which it was found."""

    path: str
    ways: tuple[str, ...] = ()


class _Folder:
    """The names in one folder, listed once."""

    def __init__(self, path: str) -> None:
        self.path, self.suggested = path, 0
        self._list()

    def _list(self) -> None:
        self._changed = _changed_at(self.path)
        try:
            self.names = frozenset(list_names(self.path))
        except OSError:
            self.names = frozenset()
        self._folded: dict[str, list[str]] | None = None
        self._stems: dict[str, list[str]] = {}

    def refresh(self) -> None:
        """List the folder again if it changed since."""
        if _changed_at(self.path) != self._changed:
            self._list()

    def matches(self, name: str) -> list[str]:
        """Return the entries that are equal to a name without case and Unicode normalisation."""
        return self._tables()[0].get(_fold(name), [])

    def with_suffix(self, name: str) -> list[str]:
        """Return the images that are equal to a name without their suffix."""
        return self._tables()[1].get(_fold(name), [])

    def _tables(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        if self._folded is None:
            folded, stems = defaultdict(list), defaultdict(list)
            for entry in sorted(self.names):
                folded[_fold(entry)].append(entry)
                if (stem := without_suffix(entry)) != entry:
                    stems[_fold(stem)].append(entry)
            self._folded, self._stems = folded, stems
        return self._folded, self._stems


def find(root: str, path: str) -> Found | None:
    """Return the file below ``root`` that a path means, or None if there is no such file or several.

    Args:
        root: Absolute normalised folder.
        path: Normalised path below it, with ``/``.
    """
    folder, _, name = path.rpartition("/")
    if _is_file(f"{root}/{folder}" if folder else root, name):
        return Found(path)
    at = ""
    ways: list[str] = []
    parts = path.split("/")
    for number, part in enumerate(parts):
        entries = _entries(f"{root}/{at}" if at else root, part, last=number == len(parts) - 1)
        if len(entries) != 1:
            return None
        ways += _ways(part, entries[0])
        at = f"{at}/{entries[0]}" if at else entries[0]
    return Found(at, tuple(dict.fromkeys(ways)))


def find_in_tree(root: str, name: str, *, whole: bool = False) -> list[str]:
    """Return the paths below ``root`` of all files with this name, or of this name with a suffix. At most 5.

    ``whole``: only those with the whole name.
    """
    tree = _tree(root, int(time.monotonic() / 60))  # listed again every minute
    return (tree.get(_fold(name)) or ([] if whole else tree.get(f"{_fold(name)}/", [])))[:5]


def last_part(path: str) -> str:
    """Return the name at the end of a path of any system.

    >>> last_part("/data/a.png"), last_part("C:\\\\data\\\\a.png")
    ('a.png', 'a.png')
    """
    return path.replace("\\", "/").rpartition("/")[2]


def candidates(path: Path) -> list[str]:
    """Return the names of the files beside a missing path that its name could mean, otherwise the most similar name."""
    if not path.parent.is_dir():
        return []
    listed = _folder(str(path.parent))
    if entries := listed.matches(path.name) or listed.with_suffix(path.name):
        return entries
    listed.suggested += 1
    if listed.suggested > MAX_SUGGESTIONS:
        return []
    found = process.extractOne(path.name, listed.names, scorer=fuzz.ratio, score_cutoff=SIMILAR)
    return [found[0]] if found else []


def forget() -> None:
    """List every folder again, for a new scan of rows."""
    _folder.cache_clear()
    _tree.cache_clear()


def without_suffix(name: str) -> str:
    """Return a file name without its image suffix.

    >>> without_suffix("ct.NII.gz"), without_suffix("1.2.840"), without_suffix("a.b.png")
    ('ct', '1.2.840', 'a.b')
    """
    lower = name.lower()
    suffix = ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]  # noqa: PTH122 (faster)
    return name[: -len(suffix)] if suffix in SUFFIXES and len(name) > len(suffix) else name


def is_image_name(name: str) -> bool:
    """Return whether a file name has the suffix of an image, in any case.

    >>> is_image_name("a.PNG"), is_image_name("ct.nii.gz"), is_image_name("a.csv.gz")
    (True, True, False)
    """
    return name.lower().endswith(SUFFIXES)


def changed_at(folders: Sequence[str]) -> dict[str, int]:
    """Return folder -> time of its last change in nanoseconds, or 0 if it is missing."""
    return {folder: _changed_at(folder) for folder in folders}


def _entries(folder: str, part: str, *, last: bool) -> list[str]:
    listed = _folder(folder)
    if last:
        listed.refresh()
        if _is_file(folder, part):
            return [part]
        whole = [one for one in listed.matches(part) if _is_file(folder, one)]
        return whole or [one for one in listed.with_suffix(part) if _is_file(folder, one)]
    if part in listed.names:
        return [part]
    listed.refresh()
    return [part] if part in listed.names else listed.matches(part)


def _is_file(folder: str, name: str) -> bool:
    """Return whether a folder has a file of this name. A folder ``p1`` beside ``p1.png`` is no image."""
    if name not in _folder(folder).names:
        return False
    return without_suffix(name) != name or not os.path.isdir(f"{folder}/{name}")  # noqa: PTH112 (faster)


def _ways(name: str, entry: str) -> Iterator[str]:
    """Yield how a name differs from the entry that it means."""
    if name == entry:
        return
    if _fold(name) != _fold(entry):
        yield SUFFIX_ADDED
        entry = without_suffix(entry)
    plain, other = (unicodedata.normalize("NFC", one) for one in (name, entry))
    if plain != other:
        yield CASE_CHANGED
    if name != entry and name.casefold() != entry.casefold():
        yield UNICODE_CHANGED


def _fold(name: str) -> str:
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@lru_cache(maxsize=1 << 15)
def _folder(path: str) -> _Folder:
    return _Folder(path)


@lru_cache(maxsize=4)
def _tree(root: str, minute: int) -> dict[str, list[str]]:
    """Return folded name -> paths below ``root``, and folded name without suffix, then ``/`` -> paths."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder, _, names in os.walk(root):
        below = folder[len(root) :].lstrip(os.sep).replace(os.sep, "/")
        for name in names:
            path = f"{below}/{name}" if below else name
            found[_fold(name)].append(path)
            if (stem := without_suffix(name)) != name:
                found[f"{_fold(stem)}/"].append(path)
    return dict(found)


def _changed_at(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116 (called for every folder)
    except OSError:
        return 0
