"""One look at every row of a source: which can be used, why the others cannot, and what rows are compared by.

The survey is made while the index is built, in the same pass, and kept beside it: opening the same source again with
the same columns reads no row.
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
from toolkit.errors import MissingPicture, RowProblem


@dataclass(frozen=True, slots=True)
class Survey:
    """``rows``: numbers of the usable rows, ascending; ``keys``: of these rows, in their order."""

    rows: NDArray[np.int64]
    keys: RowKeys
    dropped: tuple[Dropped, ...]
    trimmed: Mapping[str, int]
    """Column -> values that had blanks around them."""
    noted: tuple[Dropped, ...] = ()
    """Usable rows of which something must be told, by what it is."""
    links: Links | None = None
    """Of all rows, where the task links them."""
    lasts: bool = True
    """Whether the same rows give the same survey; a picture that was missing may be there next time."""


class Surveyor:
    """Takes a survey row by row."""

    def __init__(self, task: Task, source: RowOrigin) -> None:
        self.task, self.source = task, source
        self._rows: list[int] = []
        self._keys = KeyBuilder()
        self._tally, self._notes = Tally(), Tally()
        self._lasts = True
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
            self._tally.add(problem.reason, name, problem.code)
            self._lasts &= not isinstance(problem, MissingPicture)
            return
        for code, rule in self.task.notes(sample) if self.task.notes else ():
            self._notes.add(rule, name, code)
        self._rows.append(number)
        self._keys.add(sample.group, [str(image.path) for image in sample.images], sample.fields.get("question", ""))

    def done(self, name: str, links: Links | None = None) -> Survey:
        """The survey of all rows so far."""
        dropped, noted = self._tally.of(name), self._notes.of(name)
        rows = np.array(self._rows, np.int64)
        return Survey(rows, self._keys.done(), dropped, dict(self._trimmed), noted, links, self._lasts)


def take_survey(task: Task, source: RowOrigin, index: RowIndex) -> Survey:
    """A survey of rows that are indexed already."""
    surveyor = Surveyor(task, source)
    links = task.link(index, source) if task.link else None
    for number, (name, row) in enumerate(index):
        if links is None:
            surveyor.look(number, name, row)
        elif links.chosen[number]:
            surveyor.look(number, name, links.put(index, number, row))
    return surveyor.done(index.source, links)


def survey_file(task: Task, source: RowOrigin, index: RowIndex) -> Path:
    """Where the survey of this index, read in this way, is kept."""
    where = (sorted(source.column.items()), str(source.image_root), source.group)
    digest = hashlib.blake2b(repr((task.name, *where, source.max_images, source.settings)).encode(), digest_size=8)
    # What the code of a task says about a row may change without a new version.
    for code in (*sorted(Path(__file__).parent.parent.rglob("*.py")), *_code_of(task)):
        digest.update(code.read_bytes())
    return index.file.with_name(f"{index.file.stem}-{digest.hexdigest()}.npz")


def _code_of(task: Task) -> list[Path]:
    """The files that a task is made of: its package, or the file of a user's own."""
    if task.entry:
        return [Path(task.entry.rpartition(":")[0])]
    return sorted(Path(inspect.getfile(task.read)).parent.rglob("*.py"))


def save_survey(survey: Survey, file: Path) -> None:
    """Write a survey under a temporary name, then rename it."""
    links = survey.links
    notes = {
        "dropped": [asdict(one) for one in survey.dropped],
        "trimmed": survey.trimmed,
        "noted": [asdict(one) for one in survey.noted],
        "links": None if links is None else links.notes,
    }
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with aside.open("wb") as stream:
        arrays = {name: getattr(survey.keys, name) for name in _KEYS}
        arrays |= {} if links is None else {f"links_{name}": getattr(links, name) for name in _LINKS}
        np.savez(stream, rows=survey.rows, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    aside.replace(file)


def load_survey(file: Path) -> Survey | None:
    """A survey that was kept; None where there is none or it was damaged."""
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
    return Survey(rows, keys, stored_dropped(notes["dropped"]), notes["trimmed"], noted, links)


_KEYS = ("groups", "questions", "images", "image_rows")
_LINKS = ("previous", "places", "lengths", "chosen")
