"""Scan of all rows of a source: usable rows, reasons for unusable rows, and keys for leak checks.

The scan runs in the pass that builds the index and is stored beside it. Opening the same source again with the same
columns reads no row.
"""

import hashlib
import inspect
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from toolkit.data import Dropped, RowIndex, Tally
from toolkit.data.links import Links
from toolkit.data.splits import KeyBuilder, RowKeys
from toolkit.data.task import RowOrigin, Task
from toolkit.data.unusable_rows import stored_dropped
from toolkit.errors import MissingImage, RowProblem


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
    lasts: bool = True
    """Whether the result can be cached. A missing image can exist next time."""


class RowScanner:
    """Scans rows one by one."""

    def __init__(self, task: Task, source: RowOrigin) -> None:
        self.task, self.source = task, source
        self._rows: list[int] = []
        self._keys = KeyBuilder()
        self._tally, self._notes = Tally(), Tally()
        self._lasts = True
        self._trimmed: Counter[str] = Counter()
        self._columns = tuple(source.column.values())

    def add(self, number: int, name: str, row: Mapping[str, Any]) -> None:
        """Read one row and record whether it is usable."""
        for column in self._columns:
            value = row.get(column)
            # str.strip returns the same object if there is nothing to strip, which is faster than a comparison.
            if isinstance(value, str) and value.strip() is not value:
                self._trimmed[column] += 1
        try:
            sample = self.task.read(name, row, self.source)
        except RowProblem as problem:
            self._tally.add(problem.reason, name, problem.code)
            self._lasts &= not isinstance(problem, MissingImage)
            return
        for code, rule in self.task.notes(sample) if self.task.notes else ():
            self._notes.add(rule, name, code)
        self._rows.append(number)
        self._keys.add(sample.group, [str(image.path) for image in sample.images], sample.fields.get("question", ""))

    def done(self, name: str, links: Links | None = None) -> RowScan:
        """Return the scan of all rows so far."""
        dropped, noted = self._tally.of(name), self._notes.of(name)
        rows = np.array(self._rows, np.int64)
        return RowScan(rows, self._keys.done(), dropped, dict(self._trimmed), noted, links, self._lasts)


def scan_rows(task: Task, source: RowOrigin, index: RowIndex) -> RowScan:
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
    where = (sorted(source.column.items()), str(source.image_root), source.group)
    digest = hashlib.blake2b(repr((task.name, *where, source.max_images, source.settings)).encode(), digest_size=8)
    # The result depends on the code of the task and of this package, which can change without a new version.
    task_code = Path(inspect.getfile(task.read)).parent.glob("*.py")
    for code in sorted([*Path(__file__).parent.parent.rglob("*.py"), *task_code]):
        digest.update(code.read_bytes())
    return index.file.with_name(f"{index.file.stem}-{digest.hexdigest()}.npz")


def save_row_scan(row_scan: RowScan, file: Path) -> None:
    """Write a scan atomically."""
    links = row_scan.links
    notes = {
        "dropped": [asdict(one) for one in row_scan.dropped],
        "trimmed": row_scan.trimmed,
        "noted": [asdict(one) for one in row_scan.noted],
        "links": None if links is None else links.notes,
    }
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        arrays = {name: getattr(row_scan.keys, name) for name in _KEYS}
        arrays |= {} if links is None else {f"links_{name}": getattr(links, name) for name in _LINKS}
        np.savez(stream, rows=row_scan.rows, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    aside.replace(file)


def load_row_scan(file: Path) -> RowScan | None:
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


_KEYS = ("groups", "questions", "images", "image_rows")
_LINKS = ("previous", "places", "lengths", "chosen")
