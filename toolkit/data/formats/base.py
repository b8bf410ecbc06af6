"""The interface of a format: how it is recognized by content, and how its records are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.data.embedded_images import EmbeddedImageStore, UnwrittenImages
from toolkit.data.formats.base64_images import may_have_images, with_kept_images
from toolkit.data.formats.readers import peek_text
from toolkit.data.formats.row_file import row_file
from toolkit.data.json_stream import Record, peek_members, repeated_key
from toolkit.data.row_counts import Tally
from toolkit.errors import DataError, RowProblem

ID_COLUMNS = ("id", "qid", "question_id", "uid")
"""Columns with the row id if the source is not an object id -> record."""

LEFT_OUT = "(otherwise its image is left out, because some of its boxes would be missing)"
"""End of the rule about an unusable annotation."""

FIRST_ROWS = 20
"""Records that recognition may read."""


@dataclass(frozen=True, slots=True)
class Container:
    """Where plain rows are stored: a file, the files of a folder, or a Hub dataset.

    Attributes:
        name: how messages name it, such as ``JSON``.
        files: its files. If one changes, the index is built again.
        parts: (store of embedded images, split or None for all rows) -> for each file, the prefix of row numbers and
            the records, streamed.
        splits: names of the splits, as the source writes them. Empty if it has no splits.
        unclear: why the rows cannot be read as one list, although the files are valid. None if they can.
    """

    name: str
    files: tuple[Path, ...]
    parts: Callable[[EmbeddedImageStore, str | None], Iterator[tuple[str, Iterator[Record]]]]
    splits: Callable[[], tuple[str, ...]] = tuple
    unclear: DataError | None = None

    @property
    def has_splits(self) -> bool:
        """Whether the source has splits. This is cheaper than their names, which can need a pass over the file."""
        return self.splits is not tuple


class Look:
    """What recognition may use of a source: its names and its first records. Each is read on first access.

    Args:
        path: the file or folder. For a Hub dataset, its name.
        container: the plain rows of the source. None: a file or folder without any.
    """

    def __init__(self, path: Path, container: Container | None) -> None:
        self.path, self.container = path, container

    @cached_property
    def is_folder(self) -> bool:
        """Whether the source is a folder."""
        return self.path.is_dir()

    @cached_property
    def suffix(self) -> str:
        """The file's suffix in lower case. Empty for a folder."""
        return "" if self.is_folder else self.path.suffix.lower()

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files directly in the folder, sorted and without hidden ones. The file itself if it is a file."""
        return tuple(one for one in self._inside if one.is_file()) if self.is_folder else (self.path,)

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The folders directly in the folder, sorted and without hidden ones. Empty for a file."""
        return tuple(one for one in self._inside if one.is_dir())

    @cached_property
    def members(self) -> dict[str, Any]:
        """The first members of a JSON file that is one object: key -> value. A list has only its first elements.

        Empty for any other source. Only the first MB of the file is read, so that later keys can be absent.
        """
        file = row_file(self.path)
        return peek_members(peek_text(file)) if file is not None and file.suffix == ".json" else {}

    @cached_property
    def rows(self) -> tuple[Any, ...]:
        """The first records of the container, 20 at most. They need not be objects."""
        if self.container is None:
            return ()
        parts = self.container.parts(UnwrittenImages(), None)
        return tuple(islice((row for _, records in parts for _, row, _ in records), FIRST_ROWS))

    @cached_property
    def objects(self) -> tuple[dict[str, Any], ...]:
        """The first records that are objects with named fields."""
        return tuple(row for row in self.rows if isinstance(row, dict))

    @cached_property
    def _inside(self) -> tuple[Path, ...]:
        shown = (one for one in self.path.iterdir() if not one.name.startswith((".", "_"))) if self.is_folder else ()
        return tuple(sorted(shown))


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass over a source.

    Attributes:
        look: the source.
        images: keeps images that the source contains as bytes.
        split: name of the split to read, as the source writes it. None: all rows.
        id_columns: columns with the row id, in order.
        skipped: records that cannot be used. ``skipped.add(rule, place, code)`` counts one, which is not yielded. The
            place has row numbers, and no id or name of a file, which can name a patient.
        notes: warnings about records that are used, counted likewise.
    """

    look: Look
    images: EmbeddedImageStore
    split: str | None = None
    id_columns: tuple[str, ...] = ID_COLUMNS
    skipped: Tally = field(default_factory=Tally)
    notes: Tally = field(default_factory=Tally)
    _at: list[str] = field(default_factory=lambda: [""])

    @property
    def at(self) -> str:
        """Return where the source has the current row, such as ``row 12``. Empty if rows are not read one by one."""
        return self._at[0]

    def move(self, place: str) -> None:
        """Set the place of the current row."""
        self._at[0] = place

    def skip(self, problem: RowProblem, place: str) -> None:
        """Count a record that cannot be used, with its value."""
        self.skipped.add_problem(place, problem)

    def has_repeated_key(self, place: str, row: Any, text: str | None) -> bool:
        """Return whether a record has a key twice with different values, and count it, since it cannot be used."""
        found = None if text is None or not isinstance(row, dict) else repeated_key(text, row)
        if found is not None:
            rule, remedy = "a record must have each key once", "Remove one of the two values."
            self.skipped.add(rule, place, "data.key_repeated", found, remedy)
        return found is not None

    def rows(self) -> Iterator[tuple[str, Any, str | None]]:
        """Yield id, row and JSON text of the plain rows, streamed. Rows without an id are numbered in each file.

        Images as text (data URLs and base64) are kept, and replaced by their paths. Such rows have no JSON text.

        Raises:
            DataError: A file is invalid, or it is not certain which split its rows are in.
        """
        if self.look.container is None:
            return
        if self.look.container.unclear is not None:
            raise self.look.container.unclear
        for prefix, records in self.look.container.parts(self.images, self.split):
            for number, (name, row, text) in enumerate(records):
                own = name if name is not None else own_id(row, self.id_columns)
                own = own if own is not None else f"{prefix}{number}"
                file = prefix.removesuffix(":")
                self.move(f"{file}, row {number}" if file else f"row {number}")
                try:
                    if may_have_images(row):
                        if self.has_repeated_key(self.at, row, text):
                            continue
                        row, text = with_kept_images(row, self.images), None
                except RowProblem as problem:
                    self.skip(problem, self.at)
                except RecursionError:
                    rule = "a record must not be nested deeper than Python can read"
                    self.skipped.add(rule, self.at, "data.json_nested_too_deeply")
                else:
                    yield own, row, text
        self.move("")  # formats that join rows, such as the boxes of an image, yield them afterwards


def own_id(row: Any, columns: tuple[str, ...]) -> str | None:
    """Return the id of a record from the first of these columns that has a value, or None."""
    if isinstance(row, dict):
        for column in columns:
            value = row.get(column)
            # NaN, which differs from itself, is a missing value of pandas.
            if isinstance(value, str | int | float) and value != "" and value == value:
                return str(value)
    return None


def _plain_files(look: Look) -> tuple[Path, ...]:
    return look.container.files if look.container else look.files


def _plain_splits(look: Look) -> tuple[str, ...]:
    return look.container.splits() if look.container else ()


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of rows. A source has the first format of the table that matches.

    Attributes:
        name: how messages name it, such as ``LLaVA conversations``.
        description: what the source must have, as a part of a sentence. Errors show it.
        matches: Look -> whether the source has this format. It must be certain, and must not raise.
        records: Reading -> (id, row, JSON text), streamed. The id is None if the source has none. The text is None if
            the row is not stored as JSON. Relative image paths start from the folder of the source.
        files: Look -> files whose change makes the index invalid.
        splits: Look -> names of the splits, as the source writes them.
    """

    name: str
    description: str
    matches: Callable[[Look], bool]
    records: Callable[[Reading], Iterator[Record]]
    files: Callable[[Look], tuple[Path, ...]] = _plain_files
    splits: Callable[[Look], tuple[str, ...]] = _plain_splits
