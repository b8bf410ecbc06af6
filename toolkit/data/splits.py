"""Splits by group, and the check that no group, image or (image, question) pair is in two splits.

Rows are compared by 64-bit hashes, so 600,000 rows need a few MB. Images are identified by path: one image stored under
two names is not detected.
"""

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError

Keys = NDArray[np.int64]
Kind = Literal["group", "image", "question"]
KINDS: tuple[Kind, ...] = ("group", "image", "question")
MAX_EXAMPLES = 5

NO_KEY = 0
"""Key of a missing identifier."""

MIX = np.int64(0x9E3779B97F4A7C1)
"""Factor that combines two keys. It is odd, so invertible modulo 2**64: no bit is lost, and NumPy wraps silently."""

_NO_KEYS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class RowKeys:
    """Hashes of rows: one group and one question per row, and ``images`` that belong to rows ``image_rows``."""

    groups: Keys
    questions: Keys
    images: Keys
    image_rows: Keys

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, rows: Keys) -> "RowKeys":
        """Return the keys of a subset of rows, given in ascending order and renumbered."""
        chosen = np.isin(self.image_rows, rows)
        image_rows = np.searchsorted(rows, self.image_rows[chosen])
        return RowKeys(self.groups[rows], self.questions[rows], self.images[chosen], image_rows)

    def of(self, kind: Kind) -> tuple[Keys, Keys]:
        """Return keys of one kind and their rows. A question is combined with its image."""
        if kind == "group":
            return self.groups, np.arange(len(self))
        if kind == "image":
            return self.images, self.image_rows
        return self.images * MIX + self.questions[self.image_rows], self.image_rows


@dataclass(frozen=True, slots=True)
class Leak:
    """Groups, images or (image, question) pairs that are in two splits.

    Attributes:
        kind: group, image, or question (a pair of image and question).
        first: the earlier split.
        second: the later split.
        count: number of groups, images or pairs in both splits.
        rows: numbers of affected rows of ``first`` and ``second``.
        examples: at most five pairs of row numbers, one of ``first`` and one of ``second``.
    """

    kind: Kind
    first: str
    second: str
    count: int
    rows: tuple[int, int]
    examples: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        what = {"group": "group", "image": "image", "question": "(image, question) pair"}[self.kind]
        return f"{self.count:,} {what}{'' if self.count == 1 else 's'} of {self.second} also in {self.first}"


@dataclass(frozen=True, slots=True)
class LeakReport:
    """All leaks between any two splits. False without leaks."""

    leaks: tuple[Leak, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.leaks)

    def __str__(self) -> str:
        return "; ".join(map(str, self.leaks)) or "no group, image or (image, question) pair is in two splits"

    def count(self, kind: Kind, first: str = "train", second: str = "test") -> int:
        """Return the number of groups, images or pairs that are in both of these splits."""
        return sum(leak.count for leak in self.leaks if (leak.kind, leak.first, leak.second) == (kind, first, second))


def split_by_group(groups: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Return the split of each row. No group is in two splits, and the result is the same on every machine.

    Groups are ordered by a hash of seed and name, and assigned to the splits in the order of ``fractions``. A split
    exceeds its fraction by less than one group, and has at least one group if its fraction is above 0.

    >>> split_by_group(["p1", "p1", "p2", "p3"], {"test": 0.25, "train": 0.75}, seed=1)
    ['train', 'train', 'test', 'train']

    Raises:
        DataError: There are fewer groups than splits.
    """
    names = list(fractions)
    keys = np.array([identifier_key(group) for group in groups], dtype=np.int64)
    return [names[number] for number in split_keys(keys, list(fractions.values()), seed).tolist()]


def split_keys(groups: Keys, fractions: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Return the split number of each row, as ``split_by_group`` for hashed groups."""
    unique, group_of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    requested = [number for number, fraction in enumerate(fractions) if fraction > 0]
    if len(unique) < len(requested):
        raise DataError(
            "data.too_few_groups",
            f"{len(requested)} splits must have at least as many groups (groups with a common image count as one)",
            place="[data.split]",
            value=len(unique),
            remedy="Name files for the splits, or another column in data.group.",
        )
    # A group's place depends only on its name and the seed, so that new rows or another row order do not reshuffle it.
    order = np.argsort(_mix(unique, seed), kind="stable")
    filled = np.cumsum(sizes[order])
    split_of_group = np.zeros(len(unique), dtype=np.int64)
    begin, due = 0, 0.0
    for position, number in enumerate(requested):
        due += fractions[number] / sum(fractions) * len(groups)
        # Every later split must still get a group.
        last = len(unique) - (len(requested) - position - 1)
        # The tolerance absorbs the rounding error of the sum, which could otherwise add one more group.
        end = min(max(int(np.searchsorted(filled, due - 1e-6)) + 1, begin + 1), last)
        split_of_group[order[begin:end]] = number
        begin = end
    return split_of_group[group_of_row]


def join_groups(keys: RowKeys) -> Keys:
    """Return the group of each row after joining groups with a common image, as their smallest key."""
    # After sorting by image, two groups with a common image are neighbours.
    groups = keys.groups[keys.image_rows]
    order = np.lexsort((groups, keys.images))
    images, groups = keys.images[order], groups[order]
    joined = np.flatnonzero((images[1:] == images[:-1]) & (groups[1:] != groups[:-1]))
    first_of: dict[int, int] = {}
    for one, other in zip(groups[joined].tolist(), groups[joined + 1].tolist(), strict=True):
        low, high = sorted((_first(one, first_of), _first(other, first_of)))
        first_of[high] = low
    names = np.array(sorted(first_of), dtype=np.int64)
    firsts = np.array([_first(name, first_of) for name in names.tolist()], dtype=np.int64)
    rows = np.isin(keys.groups, names)
    result = keys.groups.copy()
    result[rows] = firsts[np.searchsorted(names, keys.groups[rows])]
    return result


def row_keys(rows: Iterable[tuple[str, Sequence[str], str]]) -> RowKeys:
    """Return the keys of rows given as (group, image paths, question)."""
    builder = KeyBuilder()
    for group, images, question in rows:
        builder.add(group, images, question)
    return builder.done()


def find_leaks(splits: Mapping[str, RowKeys]) -> LeakReport:
    """Return groups, images, and questions about one image that are in two splits, for each pair of splits in order."""
    found = (_leak(kind, *pair) for pair in combinations(splits.items(), 2) for kind in KINDS)
    return LeakReport(tuple(leak for leak in found if leak is not None))


def leaking_rows(split: RowKeys, later: Sequence[RowKeys]) -> NDArray[np.bool_]:
    """Return a mask of rows whose group or image is also in a later split, shape (rows,)."""
    marked = np.zeros(len(split), dtype=bool)
    for kind in KINDS[:2]:
        keys, rows = split.of(kind)
        for other in later:
            marked[rows[np.isin(keys, other.of(kind)[0])]] = True
    return marked


def patients_in_several(grouped: Sequence[tuple[Keys, Keys]], splits: Sequence[Keys]) -> tuple[int, int] | None:
    """Return how many patients are in several groups or splits, and in how many rows, or None if no patient is.

    Args:
        grouped: for each source that is split by group, the patient and the group of each row.
        splits: for each split, the patient of each row. ``NO_KEY`` is no patient.
    """
    places = [(np.arange(len(splits)).repeat([len(keys) for keys in splits]), np.concatenate([*splits, _NO_KEYS]))]
    found = np.unique(np.concatenate([_in_several(*place) for place in [*places, *(one[::-1] for one in grouped)]]))
    if not len(found):
        return None
    return len(found), sum(int(np.isin(keys, found).sum()) for keys in splits)


def _in_several(places: Keys, patients: Keys) -> Keys:
    """Return the patients whose rows are in several places."""
    known = patients != NO_KEY
    pairs = np.unique(np.stack([patients[known], places[known]]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    return names[counts > 1]


class KeyBuilder:
    """Collects the keys of rows one by one."""

    def __init__(self) -> None:
        self._groups, self._questions, self._images, self._image_rows = (array("q") for _ in range(4))

    def add(self, group: str, images: Sequence[str], question: str) -> None:
        """Append one row."""
        row = len(self._groups)
        self._groups.append(identifier_key(group))
        self._questions.append(text_key(" ".join(question.lower().split())))
        for image in images:
            self._images.append(text_key(image))
            self._image_rows.append(row)

    def done(self) -> RowKeys:
        """Return the keys of all rows so far."""
        columns = (self._groups, self._questions, self._images, self._image_rows)
        return RowKeys(*(np.frombuffer(column, dtype=np.int64) for column in columns))


def identifier_key(name: str) -> int:
    """Return ``text_key`` of a group. Leading zeros are ignored, because tables lose them: 00000013 is 13.

    Characters are compared in their compatibility form, because files of two systems can encode one name differently.
    """
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
    return text_key(name.lstrip("0") or "0") if name.isdecimal() else text_key(name)


@lru_cache(maxsize=1 << 12)
def text_key(text: str) -> int:
    """Return a signed 64-bit hash. Two of a million texts collide once in 40 million datasets."""
    return int.from_bytes(_digest(text, 8), "little", signed=True)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def _mix(keys: Keys, seed: int) -> NDArray[np.uint64]:
    """Return an order of the keys for each seed (splitmix64: Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    mixed = keys.astype(np.uint64) ^ np.uint64(int.from_bytes(_digest(str(seed), 8), "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _first(name: int, first_of: dict[int, int]) -> int:
    """Return the smallest joined name, with path compression."""
    passed = []
    while (parent := first_of.setdefault(name, name)) != name:
        passed.append(name)
        name = parent
    first_of.update(dict.fromkeys(passed, name))
    return name


def _leak(kind: Kind, first: tuple[str, RowKeys], second: tuple[str, RowKeys]) -> Leak | None:
    (keys_1, rows_1), (keys_2, rows_2) = first[1].of(kind), second[1].of(kind)
    shared = np.intersect1d(keys_1, keys_2)
    if not len(shared):
        return None
    in_1, in_2 = np.isin(keys_1, shared), np.isin(keys_2, shared)
    rows = (len(np.unique(rows_1[in_1])), len(np.unique(rows_2[in_2])))
    examples = tuple((_row_of(key, keys_1, rows_1), _row_of(key, keys_2, rows_2)) for key in shared[:MAX_EXAMPLES])
    return Leak(kind, first[0], second[0], len(shared), rows, examples)


def _row_of(key: np.int64, keys: Keys, rows: Keys) -> int:
    return int(rows[np.argmax(keys == key)])
