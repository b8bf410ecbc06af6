"""One look at every row of a source: which can be used, why the others cannot, and what rows are compared by.

The survey is made while the index is built, in the same pass, and kept beside it: opening the same source again with
the same columns reads no row.
"""

import hashlib
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

from toolkit.errors import RowProblem
from toolkit.rows import Dropped, RowIndex, Tally
from toolkit.rows.tally import stored_dropped
from toolkit.splits import KeyBuilder, RowKeys
from toolkit.tasks.base import RowOrigin, Task


@dataclass(frozen=True, slots=True)
class Survey:
    """``rows``: numbers of the usable rows, ascending; ``keys``: of these rows, in their order."""

    rows: NDArray[np.int64]
    keys: RowKeys
    dropped: tuple[Dropped, ...]
    trimmed: Mapping[str, int]
    """Column -> values that had blanks around them."""


class Surveyor:
    """Takes a survey row by row."""

    def __init__(self, task: Task, source: RowOrigin) -> None:
        self.task, self.source = task, source
        self._rows: list[int] = []
        self._keys = KeyBuilder()
        self._tally = Tally()
        self._trimmed: Counter[str] = Counter()
        self._columns = tuple(source.column.values())

    def look(self, number: int, name: str, row: Mapping[str, Any]) -> None:
        """Read one row and note whether it can be used."""
        for column in self._columns:
            value = row.get(column)
            if (
                isinstance(value, str) and value.strip() is not value
            ):  # a text without outer blanks is given back itself
                self._trimmed[column] += 1
        try:
            sample = self.task.read(name, row, self.source)
        except RowProblem as problem:
            self._tally.add(problem.reason, name)
            return
        self._rows.append(number)
        self._keys.add(sample.group, [str(image.path) for image in sample.images], sample.fields.get("question", ""))

    def done(self, name: str) -> Survey:
        """The survey of all rows so far."""
        return Survey(np.array(self._rows, np.int64), self._keys.done(), self._tally.of(name), dict(self._trimmed))


def take_survey(task: Task, source: RowOrigin, index: RowIndex) -> Survey:
    """A survey of rows that are indexed already."""
    surveyor = Surveyor(task, source)
    for number, (name, row) in enumerate(index):
        surveyor.look(number, name, row)
    return surveyor.done(index.source)


def survey_file(task: Task, source: RowOrigin, index: RowIndex) -> Path:
    """Where the survey of this index, read in this way, is kept."""
    where = (sorted(source.column.items()), str(source.image_root), source.group)
    digest = hashlib.blake2b(repr((task.name, *where, source.max_images, source.settings)).encode(), digest_size=8)
    # What the code of the tasks says about a row may change without a new version.
    for code in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(code.read_bytes())
    return index.file.with_name(f"{index.file.stem}-{digest.hexdigest()}.npz")


def save_survey(survey: Survey, file: Path) -> None:
    """Write a survey under a temporary name, then rename it."""
    notes = {"dropped": [asdict(one) for one in survey.dropped], "trimmed": survey.trimmed}
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        arrays = {name: getattr(survey.keys, name) for name in _KEYS}
        np.savez(stream, rows=survey.rows, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    aside.replace(file)


def load_survey(file: Path) -> Survey | None:
    """A survey that was kept; None where there is none or it was damaged."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            notes = json.loads(stored["notes"].tobytes())
            keys = RowKeys(**{name: stored[name] for name in _KEYS})
            rows = stored["rows"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return Survey(rows, keys, stored_dropped(notes["dropped"]), notes["trimmed"])


_KEYS = ("groups", "questions", "images", "image_rows")
