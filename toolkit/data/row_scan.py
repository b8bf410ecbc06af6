"""The scan of the rows of one source: which rows are usable, why the others are not, and the keys for leak checks.

The scan reads every row once. It runs in the pass that builds the index and is stored beside it.
"""

import hashlib
import inspect
import io
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from toolkit.data.boxes import FileBoxes
from toolkit.data.cells import (
    NO_ANSWER,
    NO_QUESTION,
    NOT_TEXT,
    TRUTH,
    group_name,
    is_missing,
    with_whole_numbers,
)
from toolkit.data.columns import MESSAGES, several_turns
from toolkit.data.conflicts import find_conflicts
from toolkit.data.episodes import Links
from toolkit.data.groups import PATIENT_FOLDER, IdentifierBuilder, patient_folder, private_parts
from toolkit.data.image_columns import count_numbered
from toolkit.data.index import RowIndex
from toolkit.data.json_stream import Row
from toolkit.data.literals import read_literal
from toolkit.data.placeholders import place_images
from toolkit.data.preferences import with_preference
from toolkit.data.row_counts import RowCount, Tally, stored_counts
from toolkit.data.row_images import forget_names
from toolkit.data.sample import OTHER_FILES, Sample
from toolkit.data.sample_set import SampleSet
from toolkit.data.splits import KeyBuilder, RowKeys, text_key
from toolkit.data.task import GROUP_FIELDS, RowOrigin, Task
from toolkit.data.whole_numbers import NumberBuilder, Numbers
from toolkit.errors import MissingImage, RowProblem
from toolkit.identifiers import described, open_private
from toolkit.images import names
from toolkit.runfolder.cache import mark_used
from toolkit.runfolder.files import remove_temporaries
from toolkit.scoring import regions
from toolkit.scoring.regions import BOX_FORMATS, XYXY, BoxFormat

FIRST_ROWS = 200
"""Rows that determine the columns of the first pass. If a later row adds a relevant column, the scan is repeated."""

MAX_TRUTH = 6
"""Length of a text that is longer than every text of ``TRUTH``."""

_BRACKETS = ("[", "{")
_REPLACED = "\ufffd"
_NOTHING = frozenset({"None", "null", "NULL", "NA", "N/A", "n/a", "undefined"})
"""Texts that programs write for missing values, and that can be answers."""
_KEYS = ("groups", "questions", "images", "image_rows")
_LINKS = ("previous", "places", "lengths", "chosen")


@dataclass(frozen=True, slots=True)
class RowScan:
    """``rows``: numbers of the usable rows, ascending. ``keys``: their keys, in the same order."""

    rows: NDArray[np.int64]
    keys: RowKeys
    dropped: tuple[RowCount, ...]
    trimmed: Mapping[str, int]
    """Column -> number of values with surrounding blanks."""
    noted: tuple[RowCount, ...] = ()
    """Usable rows with a warning, by warning."""
    links: Links | None = None
    """Links of all rows, if the task links them."""
    cacheable: bool = True
    """Whether the result can be cached. A missing image can exist next time."""
    identifiers: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Column that looks like an identifier of patients -> its key in each usable row."""
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    """Column of numbers -> what kind of numbers it has."""
    prompts: NDArray[np.int64] | None = None
    """Keys of the prompts of the usable rows, if the task has ``prompt_key``. They are not stored."""
    boxes: BoxFormat | None = None
    """The format of the boxes that the scan found. None if the recipe names it, or the task has no boxes."""
    boxes_found: str = ""
    """The notice about this format. Empty without boxes."""
    by: Mapping[str, int] = field(default_factory=dict)
    """Column of evaluate.by -> number of its values in the usable rows."""
    folders: Mapping[str, int] = field(default_factory=dict)
    """Folder in which image names were searched -> time of its last change. The result is valid until one changes."""


def scan_rows(
    task: Task, origin: RowOrigin, index: RowIndex, first: Callable[[], RowScan | None] = lambda: None
) -> RowScan:
    """Return the stored scan of an index, or make it. ``first`` returns the scan of the pass that built the index."""
    file = row_scan_file(task, origin, index)
    row_scan = _load(file)
    if row_scan is None:
        row_scan = first() or _scan_index(task, origin, index)
        if row_scan.boxes is not None and origin.boxes is None:
            origin = replace(origin, boxes=row_scan.boxes)
            if row_scan.boxes != XYXY:
                again = _scan_index(task, origin, index)
                row_scan = replace(again, boxes=row_scan.boxes, boxes_found=row_scan.boxes_found)
        samples = SampleSet(task, index, origin, row_scan.rows, row_scan.links)
        conflicts = find_conflicts(samples, row_scan.keys, row_scan.prompts)
        row_scan = replace(row_scan, noted=(*row_scan.noted, *conflicts))
        if row_scan.cacheable:
            _save(row_scan, file)
    return row_scan


class RowScanner:
    """Scans rows one by one. Boxes of an unknown format are read as corners in pixels, which most files have."""

    def __init__(self, task: Task, origin: RowOrigin) -> None:
        self.task, self.origin = task, origin
        self._boxes = FileBoxes() if origin.boxes is None else None
        forget_names()  # files may have been added since the last scan
        self._rows: list[int] = []
        self._keys = KeyBuilder()
        self._tally, self._notes = Tally(), Tally()
        self._cacheable = True
        self._folders: set[str] = set()
        self._trimmed: Counter[str] = Counter()
        self._columns = tuple(origin.column.values())
        self._group_columns = [origin.column[name] for name in GROUP_FIELDS if name in origin.column]
        self._identifiers = [IdentifierBuilder(column) for column in origin.identifiers]
        others = (column for _, column in origin.others)
        self._numbers = NumberBuilder(dict.fromkeys((*self._columns, *others, *origin.context, *origin.by)))
        self._prompts = array("q")
        self._by: dict[str, set[int]] = {column: set() for column in origin.by}
        self._root = str(origin.image_root)

    def add(self, number: int, name: str, row: Row, place: str) -> None:
        """Read one row and record whether it is usable. ``place`` is its number in the source, for messages."""
        suspect = self._suspect_columns(row)
        self._numbers.add(row)
        if self._boxes is not None:
            self._boxes.add(place, row, self.origin)
        try:
            read = self.task.read(name, with_whole_numbers(row, self.origin.whole), self.origin)
            sample = place_images(self.task, read, self.origin.context, count_numbered(row, self.origin))
            sample = with_preference(self.task, sample, row, self.origin.preference)
            if self.origin.others:
                self._check_others(name, row, read)
        except RowProblem as problem:
            problem = _of_conversation(problem, row, self.task)
            self._tally.add_problem(place, _with_column(problem, row), private_parts(name, row, self.origin))
            self._cacheable &= not isinstance(problem, MissingImage)
            return
        for code, rule in self.task.notes(sample) if self.task.notes else ():
            self._notes.add(rule, place, code)
        if len(set(sample.images)) < len(set(read.images)):
            rule = "images without a placeholder are not shown, because the placeholders have numbers"
            remedy = "Add a placeholder such as <image 2> for each image that must be shown."
            value = f"{len(set(sample.images))} of {len(set(read.images))} images"
            self._notes.add(rule, place, "data.images_not_shown", value, remedy)
        self._note_images(place, sample)
        for column in suspect:
            if _REPLACED in row[column]:
                self._note_replaced(column, place, row[column])
            if row[column] in TRUTH:
                self._note_truth(column, (name, place), row, sample)
            elif row[column] in _NOTHING:
                self._note_nothing(column, place, row[column], sample)
            else:
                self._add_listed(column, place, row[column].strip(), sample)
        self._count_by(row)
        self._rows.append(number)
        self._keys.add(sample.group, [str(image.path) for image in sample.images], sample.fields.get("question", ""))
        self._add_patient(place, row, sample)

    def _count_by(self, row: Row) -> None:
        for column, values in self._by.items():
            if not is_missing(row.get(column)):
                values.add(text_key(str(row[column])))

    def _suspect_columns(self, row: Row) -> list[str]:
        """Return the columns with a text that can be another value or damaged, and count blanks around texts."""
        found = []
        for column in self._columns:
            value = row.get(column)
            if not isinstance(value, str):
                continue
            is_truth = len(value) < MAX_TRUTH and value in TRUTH and column not in self.origin.whole
            if is_truth or value.startswith(_BRACKETS) or value in _NOTHING or _REPLACED in value:
                found.append(column)
            # str.strip returns the same object if there is nothing to strip, which is faster than a comparison.
            if value.strip() is not value:
                self._trimmed[column] += 1
        return found

    def _add_listed(self, column: str, place: str, text: str, sample: Sample) -> None:
        """Count a question or reference that is JSON. It can be a list that was meant, or a text with brackets."""
        shown = (sample.fields.get("question"), *sample.reference.values())
        if any(text == value for value in shown if isinstance(value, str)) and read_literal(text) is not None:
            rule = f"the column {column} has a list or an object as JSON, which is used as text"
            remedy = "Store one text in each cell if a list was meant."
            self._notes.add(rule, place, "data.text_is_json", described(text), remedy)

    def _note_replaced(self, column: str, place: str, text: str) -> None:
        """Count a text that lost a character when it was decoded in another encoding than its own."""
        rule = f"a text of the column {column} has U+FFFD in place of a character that was lost in a conversion"
        value = f"character {text.index(_REPLACED) + 1:,} of {len(text):,}"
        self._notes.add(rule, place, "data.character_lost", value, "Export the rows again as UTF-8.")

    def _note_nothing(self, column: str, place: str, text: str, sample: Sample) -> None:
        """Count a reference such as "None", unless it is one of the options. It can be a missing value."""
        if text in sample.reference.values() and "options" not in sample.fields:
            rule = f"the text {text} of the column {column} can be a missing value, and is used as text"
            self._notes.add(rule, place, "data.text_can_be_missing", text, "Remove these rows if it is missing.")

    def _check_others(self, name: str, row: Row, sample: Sample) -> None:
        """Raise a RowProblem if another column with the usual name of a field has another value than the one read."""
        row = with_whole_numbers(row, self.origin.whole)
        for wanted, other in self.origin.others:
            column = self.origin.column[wanted]
            if is_missing(row.get(other)) or row[other] == [] or row[other] == row.get(column):
                continue
            if self._meaning(name, row, wanted, other) != _folded(sample):
                rule = f"the columns {column} and {other}, which both can be the field {wanted}, must agree"
                value = {column: row.get(column), other: row[other]}
                remedy = f"Name the right column in data.columns.{wanted}, or correct the rows."
                raise RowProblem("data.columns_contradict", rule, value=value, remedy=remedy)

    def _meaning(self, name: str, row: Row, wanted: str, column: str) -> str | None:
        """Return the content of the row if a field is read from another column, or None if that is not possible."""
        try:
            origin = replace(self.origin, column={**self.origin.column, wanted: column})
            return _folded(self.task.read(name, row, origin))
        except RowProblem:
            return None

    def _note_truth(self, column: str, where: tuple[str, str], row: Row, sample: Sample) -> None:
        """Count a text True or False that is another target as a truth value, which JSON has."""
        name, place = where
        try:
            other = self.task.read(name, {**row, column: TRUTH[row[column]]}, self.origin)
        except RowProblem:
            return
        if (target := self.task.target(other)) != self.task.target(sample):
            rule = f"the text true or false of the column {column} stays a text, because the column has other values"
            value = {"text": row[column], "truth value": target}
            self._notes.add(rule, place, "data.truth_value_is_text", value, "Write yes and no, or one kind of value.")

    def _add_patient(self, place: str, row: Row, sample: Sample) -> None:
        for identifier in self._identifiers:
            is_folder = identifier.column == PATIENT_FOLDER
            identifier.add(self._patient_folder(sample) if is_folder else row.get(identifier.column))
        if self._group_columns and not group_name(row.get(self._group_columns[0])):
            others = [*self._group_columns[1:], "the first image"]
            rule = f"the column {self._group_columns[0]} is empty, so the group is {' or '.join(others)}"
            self._notes.add(rule, place, "data.group_empty")
        if self.task.prompt_key is not None:
            self._prompts.append(text_key(self.task.prompt_key(sample)))

    def _patient_folder(self, sample: Sample) -> str:
        # Text, because a relative Path for each row would cost several times as much.
        return patient_folder(str(sample.images[0].path).removeprefix(self._root)) if sample.images else ""

    def _note_images(self, place: str, sample: Sample) -> None:
        """Count a row without image, and names of images and masks that were not equal to the file's name."""
        if not sample.images:
            if "image" in self.origin.column and not self.task.needs_image:
                self._notes.add("the row has no image and is used as text", place, "data.row_without_image")
            return
        ways: dict[str, str] = {}
        for number, image in enumerate((*sample.images, *sample.fields.get(OTHER_FILES, ())), 1):
            if image.found:
                self._folders.add(str(image.path.parent))
                position = f"image {number}" if number <= len(sample.images) else "mask"
                ways |= {way: position for way in image.found if way in names.WAYS and way not in ways}
        for way, position in ways.items():
            self._notes.add(names.WAYS[way], f"{place}, {position}", way)

    def done(self, name: str, links: Links | None = None) -> RowScan:
        """Return the scan of all rows so far.

        Raises:
            DataError: No format fits all boxes, or several do.
        """
        dropped = self._tally.of(name)
        # If no row is usable for another reason, that is the error to report.
        readable = self._rows or any(one.code.startswith("data.box_") for one in dropped)
        boxes, notice = (None, "") if self._boxes is None or not readable else self._boxes.decide(name)
        keys = {one.column: one.done() for one in self._identifiers}
        return RowScan(
            rows=np.array(self._rows, np.int64),
            keys=self._keys.done(),
            dropped=dropped,
            trimmed=dict(self._trimmed),
            noted=self._notes.of(name),
            links=links,
            cacheable=self._cacheable,
            identifiers={column: found for column, found in keys.items() if found is not None},
            numbers=self._numbers.done(),
            prompts=np.frombuffer(self._prompts, np.int64) if self.task.prompt_key is not None else None,
            boxes=boxes,
            boxes_found=notice,
            folders=names.changed_at(sorted(self._folders)),
            by={column: len(values) for column, values in self._by.items()},
        )


def _folded(sample: Sample) -> str:
    """Return what a sample requests and its reference, without case and additional blanks."""
    shown = (sample.fields.get("question"), sample.fields.get("options"), sample.reference)
    return " ".join(repr(shown).casefold().split())


def _of_conversation(problem: RowProblem, row: Row, task: Task) -> RowProblem:
    """Return the reason why a conversation has no question and answer, instead of that they are missing."""
    is_conversation = MESSAGES in row and MESSAGES not in task.columns and "answer" not in row
    if not is_conversation or problem.code not in (NO_QUESTION[0], NO_ANSWER[0]):
        return problem
    found = several_turns(task.name)
    turns = row[MESSAGES] if isinstance(row[MESSAGES], list) else []
    value = f"{len(turns)} turns"
    return RowProblem(found.code, found.rule, place=problem.place, value=value, remedy=found.remedy)


def _with_column(problem: RowProblem, row: Row) -> RowProblem:
    """Return the problem of a value that is no text, with the column that has the value."""
    if problem.code != NOT_TEXT or problem.cell is None:
        return problem
    column = next((name for name, value in row.items() if _has(value, problem.cell)), None)
    if column is None:
        return problem
    rule = problem.rule.replace("the value", f"the value of the column {column}", 1)
    return RowProblem(problem.code, rule, place=problem.place, value=problem.cell, remedy=problem.remedy)


def _has(cell: Any, value: object) -> bool:
    """Return whether a cell is this object or a list of it."""
    return cell is value or (isinstance(cell, list) and any(one is value for one in cell))


class FirstPass:
    """A row scan in the pass that builds the index, with the columns of the first rows."""

    def __init__(self, task: Task, make_origin: Callable[[Sequence[str]], RowOrigin]) -> None:
        self._task, self._make_origin = task, make_origin
        self._first: list[tuple[int, str, Row, str]] = []
        self._scanner: RowScanner | None = None

    def add(self, number: int, name: str, row: Row, place: str) -> None:
        """Read one row. The first rows wait until the columns are known."""
        if self._scanner is not None:
            self._scanner.add(number, name, row, place)
        else:
            self._first.append((number, name, row, place))
            if len(self._first) == FIRST_ROWS:
                self._start()

    def done(self, origin: RowOrigin, name: str) -> RowScan | None:
        """Return the scan, if there was a pass and its rows were read with the final columns."""
        if self._first:
            self._start()
        fits = self._scanner is not None and self._scanner.origin == origin
        return self._scanner.done(name) if self._scanner and fits else None

    def _start(self) -> None:
        self._scanner = RowScanner(
            self._task, self._make_origin(list(dict.fromkeys(c for _, _, row, _ in self._first for c in row)))
        )
        for one in self._first:
            self._scanner.add(*one)
        self._first.clear()


def _scan_index(task: Task, origin: RowOrigin, index: RowIndex) -> RowScan:
    """Return a scan of the rows of an existing index."""
    scanner = RowScanner(task, origin)
    links = task.link(index, origin) if task.link else None
    for number, (name, row) in enumerate(index):
        if links is None or links.chosen[number]:
            linked = row if links is None else links.put(index, number, row)
            scanner.add(number, name, linked, index.place(number))
    return scanner.done(index.source, links)


def row_scan_file(task: Task, origin: RowOrigin, index: RowIndex) -> Path:
    """Return the cache file of this index's scan with these settings."""
    where = (sorted(origin.column.items()), str(origin.image_root), origin.group, origin.identifiers, origin.whole)
    prompt = (origin.context, origin.by)
    content = (task.name, *where, *prompt, origin.max_images, origin.settings, origin.boxes, origin.others)
    preference = () if origin.preference is None else (origin.preference,)
    digest = hashlib.blake2b(repr((*content, *preference)).encode(), digest_size=8)
    # The result depends on the code of the task, of this package and of boxes. It can change without a new version.
    own = (code for package in (Path(__file__), Path(regions.__file__)) for code in package.parent.rglob("*.py"))
    for code in sorted([*own, *_code_of(task)]):
        digest.update(code.read_bytes())
    return index.file.with_name(f"{index.file.stem}-{digest.hexdigest()}.npz")


def _code_of(task: Task) -> list[Path]:
    """Return the files of a task: those of its package, or the file of a user's task."""
    if task.entry:
        return [Path(task.entry.rpartition(":")[0])]
    return list(Path(inspect.getfile(task.read)).parent.rglob("*.py"))


def _save(row_scan: RowScan, file: Path) -> None:
    """Write a scan atomically."""
    links = row_scan.links
    notes = {
        "dropped": [asdict(one) for one in row_scan.dropped],
        "trimmed": row_scan.trimmed,
        "noted": [asdict(one) for one in row_scan.noted],
        "links": None if links is None else links.notes,
        "identifiers": list(row_scan.identifiers),
        "boxes": None if row_scan.boxes is None else str(row_scan.boxes),
        "boxes_found": row_scan.boxes_found,
        "numbers": {column: asdict(one) for column, one in row_scan.numbers.items()},
        "folders": row_scan.folders,
        "by": row_scan.by,
    }
    remove_temporaries(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with os.fdopen(open_private(temporary), "wb") as stream:
        arrays = {name: getattr(row_scan.keys, name) for name in _KEYS}
        arrays |= {} if links is None else {f"links_{name}": getattr(links, name) for name in _LINKS}
        arrays |= {f"identifier_{number}": keys for number, keys in enumerate(row_scan.identifiers.values())}
        np.savez(stream, rows=row_scan.rows, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    temporary.replace(file)


def _load(file: Path) -> RowScan | None:
    """Return a stored scan, or None if it is missing or corrupt."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            mark_used(file)
            notes = json.loads(stored["notes"].tobytes())
            keys = RowKeys(**{name: stored[name] for name in _KEYS})
            rows = stored["rows"]
            arrays = {name: stored[f"links_{name}"] for name in _LINKS} if notes["links"] is not None else None
            identifiers = {name: stored[f"identifier_{number}"] for number, name in enumerate(notes["identifiers"])}
            folders: dict[str, int] = notes["folders"]
            by: dict[str, int] = notes["by"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    if names.changed_at(list(folders)) != folders:
        return None
    links = None if arrays is None else Links(**arrays, notes=tuple(notes["links"]))
    return RowScan(
        rows=rows,
        keys=keys,
        dropped=stored_counts(notes["dropped"]),
        trimmed=notes["trimmed"],
        noted=stored_counts(notes["noted"]),
        links=links,
        identifiers=identifiers,
        numbers={column: Numbers(**one) for column, one in notes["numbers"].items()},
        boxes=BOX_FORMATS.get(notes["boxes"]),
        boxes_found=notes["boxes_found"],
        folders=folders,
        by=by,
    )
