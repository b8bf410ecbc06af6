"""The usable rows of one source: its index, its columns, and the scan of its rows.

The scan reads every row once: which rows are usable, why the others are not, and the keys for leak checks. It runs in
the pass that builds the index and is stored beside it. Opening the same source again with the same columns reads no
row.
"""

import hashlib
import inspect
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from toolkit.data.columns import RowSettings, leaking_context, resolve_columns
from toolkit.data.episodes import Links
from toolkit.data.image_places import place_images
from toolkit.data.index import RowIndex, open_index, source_folder
from toolkit.data.json_stream import Row
from toolkit.data.sample_set import SampleSet
from toolkit.data.splits import KeyBuilder, RowKeys
from toolkit.data.task import RowOrigin, Task
from toolkit.data.unusable_rows import Dropped, Tally, stored_dropped, total
from toolkit.errors import DataError, DataProblems, MissingImage, Problem, RowProblem
from toolkit.recipe import Recipe

FIRST_ROWS = 200
"""Rows that determine the columns of the first pass. If a later row adds a relevant column, the scan is repeated."""

_KEYS = ("groups", "questions", "images", "image_rows")
_LINKS = ("previous", "places", "lengths", "chosen")


@dataclass(frozen=True, slots=True)
class UsableRows:
    """All usable rows of one source, their keys, and the counts."""

    samples: SampleSet
    keys: RowKeys
    dropped: tuple[Dropped, ...]
    warnings: tuple[Problem, ...]
    """Warnings, most severe first."""


@dataclass(frozen=True, slots=True)
class RowScan:
    """``rows``: numbers of the usable rows, ascending. ``keys``: their keys, in the same order."""

    rows: NDArray[np.int64]
    keys: RowKeys
    dropped: tuple[Dropped, ...]
    trimmed: Mapping[str, int]
    """Column -> number of values with surrounding blanks."""
    noted: tuple[Dropped, ...] = ()
    """Usable rows with a warning, by warning."""
    links: Links | None = None
    """Links of all rows, if the task links them."""
    cacheable: bool = True
    """Whether the result can be cached. A missing image can exist next time."""


def read_file(
    recipe: Recipe, task: Task, source: str, image_root: Path | None = None, split: str = "train"
) -> UsableRows:
    """Load every usable row of one source with the recipe's settings for a split.

    ``image_root`` takes precedence over the recipe's. Without either, it is the folder of the rows.

    Raises:
        DataError: The source or columns are missing (all such problems together), no row is usable, or more rows than
            ``data.max_dropped`` are unusable.
    """
    requested = row_settings(recipe, task, split)
    index, origin, row_scan = _open(task, requested, source, image_root or recipe.dataset.image_root)
    dropped = (*index.skipped, *row_scan.dropped)
    _check_dropped(dropped, index, len(row_scan.rows), recipe.dataset.max_dropped)
    warnings = tuple(_warnings(task, requested, origin, index, row_scan))
    samples = SampleSet(task, index, origin, row_scan.rows, row_scan.links)
    return UsableRows(samples, row_scan.keys, dropped, warnings)


def row_settings(recipe: Recipe, task: Task, split: str = "train") -> RowSettings:
    """Return the recipe's settings for rows, with the task's settings for a split."""
    by = recipe.results_by if recipe.evaluate else ()
    settings = task.settings(recipe, split)
    columns, group, context = recipe.dataset.columns, recipe.dataset.group, recipe.prompt.context
    chosen = recipe.dataset.filter
    return RowSettings(columns, group, context, by, recipe.images.max_per_question, settings, chosen)


def _open(
    task: Task, requested: RowSettings, source: str, image_root: Path | None
) -> tuple[RowIndex, RowOrigin, RowScan]:
    root = image_root or source_folder(source)
    first_pass = _FirstPass(task, lambda columns: _origin(task, requested, (source, root), columns))
    id_column, visit = requested.columns.get("id"), None if task.link else first_pass.add
    index = open_index(source, id_column=id_column, chosen=requested.filter, visit=visit)
    _check_columns(task, requested, index, image_root)
    # Embedded images are stored beside the index, so image_root does not apply to them.
    root = index.image_root if index.metadata.has_embedded_images else image_root or index.image_root
    origin = _origin(task, requested, (source, root), index.columns)
    file = row_scan_file(task, origin, index)
    row_scan = _load_row_scan(file)
    if row_scan is None:
        row_scan = first_pass.done(origin, source) or _scan_rows(task, origin, index)
        if row_scan.cacheable:
            _save_row_scan(row_scan, file)
    return index, origin, row_scan


def _origin(task: Task, requested: RowSettings, where: tuple[str, Path | None], columns: Sequence[str]) -> RowOrigin:
    source, root = where
    column, _ = resolve_columns(task, requested, columns)
    by = tuple(name for name in requested.by if name in columns and name not in task.columns)
    # Path.resolve would follow a link and change the folder that relative image paths start from.
    folder = Path(os.path.abspath(root or "."))  # noqa: PTH100
    return RowOrigin(
        Path(source), folder, column, requested.group, requested.context, by, requested.max_images, requested.settings
    )


def _check_columns(task: Task, requested: RowSettings, index: RowIndex, image_root: Path | None) -> None:
    _, problems = resolve_columns(task, requested, index.columns)
    if image_root is None and index.image_root is None:
        rule, remedy = "rows with image paths must have a folder that the paths start from", "Set data.image_root."
        problems.append(Problem("data.image_root_missing", rule, "data.image_root", remedy=remedy))
    if problems:
        rule = "the recipe must fit the columns of the rows"
        raise DataProblems("data.columns_do_not_fit", rule, problems, place=index.source)


def _check_dropped(dropped: Sequence[Dropped], index: RowIndex, usable: int, maximum: float) -> None:
    lost = total(dropped)
    if usable and lost <= maximum * (lost + usable):
        return
    reasons = "".join(f"\n  {one.count:,} rows: {one.reason} ({'; '.join(one.examples)})" for one in dropped)
    raise DataError(
        "data.too_many_unusable_rows",
        f"at least one row must be usable, and unusable rows must be at most {maximum:.1%} (data.max_dropped)",
        place=index.source,
        value=f"{lost:,} of {lost + usable:,}",
        remedy=f"Correct the rows or data.columns, or raise data.max_dropped:{reasons}",
    )


def _warnings(
    task: Task, requested: RowSettings, source: RowOrigin, index: RowIndex, row_scan: RowScan
) -> Iterator[Problem]:
    name, metadata = index.source, index.metadata
    for column in leaking_context(task, requested, source.column):
        rule = "prompt.context should not have a column with the answer: scores say nothing about the images"
        yield Problem("data.context_has_answer", rule, name, column, "Remove it from prompt.context.")
    for note in row_scan.links.notes if row_scan.links else ():
        yield Problem("data.order_irregular", note)
    for one in (*index.skipped, *row_scan.dropped):
        yield one.notice("left out")
    for one in (*metadata.noted, *row_scan.noted):
        yield one.notice()
    if metadata.duplicates:
        rule = "ids should be unique: repeated ids are kept as id#2, id#3, …"
        value = f"{metadata.duplicates:,} repeated, such as {', '.join(metadata.duplicate_examples)}"
        yield Problem("data.ids_repeated", rule, name, value)
    for column, count in row_scan.trimmed.items():
        yield Problem("data.blanks_removed", f"blanks around {count:,} values of {column} were removed", name)


class RowScanner:
    """Scans rows one by one."""

    def __init__(self, task: Task, source: RowOrigin) -> None:
        self.task, self.source = task, source
        self._rows: list[int] = []
        self._keys = KeyBuilder()
        self._tally, self._notes = Tally(), Tally()
        self._cacheable = True
        self._trimmed: Counter[str] = Counter()
        self._columns = tuple(source.column.values())

    def add(self, number: int, name: str, row: Row) -> None:
        """Read one row and record whether it is usable."""
        for column in self._columns:
            value = row.get(column)
            # str.strip returns the same object if there is nothing to strip, which is faster than a comparison.
            if isinstance(value, str) and value.strip() is not value:
                self._trimmed[column] += 1
        try:
            sample = place_images(self.task, self.task.read(name, row, self.source), self.source.context)
        except RowProblem as problem:
            self._tally.add(problem.reason, name, problem.code)
            self._cacheable &= not isinstance(problem, MissingImage)
            return
        for code, rule in self.task.notes(sample) if self.task.notes else ():
            self._notes.add(rule, name, code)
        self._rows.append(number)
        self._keys.add(sample.group, [str(image.path) for image in sample.images], sample.fields.get("question", ""))

    def done(self, name: str, links: Links | None = None) -> RowScan:
        """Return the scan of all rows so far."""
        dropped, noted = self._tally.of(name), self._notes.of(name)
        rows = np.array(self._rows, np.int64)
        return RowScan(rows, self._keys.done(), dropped, dict(self._trimmed), noted, links, self._cacheable)


class _FirstPass:
    """A row scan in the pass that builds the index, with the columns of the first rows."""

    def __init__(self, task: Task, make_source: Callable[[Sequence[str]], RowOrigin]) -> None:
        self._task, self._make_source = task, make_source
        self._first: list[tuple[int, str, Row]] = []
        self._scanner: RowScanner | None = None

    def add(self, number: int, name: str, row: Row) -> None:
        if self._scanner is not None:
            self._scanner.add(number, name, row)
        else:
            self._first.append((number, name, row))
            if len(self._first) == FIRST_ROWS:
                self._start()

    def done(self, source: RowOrigin, name: str) -> RowScan | None:
        """Return the scan, if there was a pass and its rows were read with the final columns."""
        if self._first:
            self._start()
        fits = self._scanner is not None and self._scanner.source == source
        return self._scanner.done(name) if self._scanner and fits else None

    def _start(self) -> None:
        self._scanner = RowScanner(
            self._task, self._make_source(list(dict.fromkeys(c for _, _, row in self._first for c in row)))
        )
        for one in self._first:
            self._scanner.add(*one)
        self._first.clear()


def _scan_rows(task: Task, source: RowOrigin, index: RowIndex) -> RowScan:
    """Return a scan of the rows of an existing index."""
    scanner = RowScanner(task, source)
    links = task.link(index, source) if task.link else None
    for number, (name, row) in enumerate(index):
        if links is None:
            scanner.add(number, name, row)
        elif links.chosen[number]:
            scanner.add(number, name, links.put(index, number, row))
    return scanner.done(index.source, links)


def row_scan_file(task: Task, source: RowOrigin, index: RowIndex) -> Path:
    """Return the cache file of this index's scan with these settings."""
    where = (sorted(source.column.items()), str(source.image_root), source.group, source.context)
    digest = hashlib.blake2b(repr((task.name, *where, source.max_images, source.settings)).encode(), digest_size=8)
    # The result depends on the code of the task and of this package, which can change without a new version.
    for code in sorted([*Path(__file__).parent.rglob("*.py"), *_code_of(task)]):
        digest.update(code.read_bytes())
    return index.file.with_name(f"{index.file.stem}-{digest.hexdigest()}.npz")


def _code_of(task: Task) -> list[Path]:
    """Return the files of a task: those of its package, or the file of a user's task."""
    if task.entry:
        return [Path(task.entry.rpartition(":")[0])]
    return list(Path(inspect.getfile(task.read)).parent.rglob("*.py"))


def _save_row_scan(row_scan: RowScan, file: Path) -> None:
    """Write a scan atomically."""
    links = row_scan.links
    notes = {
        "dropped": [asdict(one) for one in row_scan.dropped],
        "trimmed": row_scan.trimmed,
        "noted": [asdict(one) for one in row_scan.noted],
        "links": None if links is None else links.notes,
    }
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        arrays = {name: getattr(row_scan.keys, name) for name in _KEYS}
        arrays |= {} if links is None else {f"links_{name}": getattr(links, name) for name in _LINKS}
        np.savez(stream, rows=row_scan.rows, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    temporary.replace(file)


def _load_row_scan(file: Path) -> RowScan | None:
    """Return a stored scan, or None if it is missing or corrupt."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            notes = json.loads(stored["notes"].tobytes())
            keys = RowKeys(**{name: stored[name] for name in _KEYS})
            rows = stored["rows"]
            arrays = {name: stored[f"links_{name}"] for name in _LINKS} if notes["links"] is not None else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    links = None if arrays is None else Links(**arrays, notes=tuple(notes["links"]))
    noted = stored_dropped(notes["noted"])
    return RowScan(rows, keys, stored_dropped(notes["dropped"]), notes["trimmed"], noted, links)
