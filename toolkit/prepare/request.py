"""What a preparation is asked for, and what comes of it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.data import Dropped
from toolkit.errors import DataError
from toolkit.runfolder import Progress, no_progress


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Request:
    """Where to write, how to split, and whom to tell.

    Attributes:
        out: the folder that is written into; made where it is missing.
        seed: orders the lesions before they are dealt to splits, and chooses the pictures of the sheet.
        validation, test: shares of each class's pictures that are held out, 0 to below 1 together.
        workers: processes that read masks; None: one for each core.
        progress: told how many pictures are measured.
        notify: called with the signal's number when one asks to stop; runs inside the handler.
    """

    out: Path
    seed: int = 3407
    validation: float = 0.1
    test: float = 0.2
    workers: int | None = None
    progress: Progress = no_progress
    notify: Callable[[int], None] = lambda number: None

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            rule = "the fractions must be at least 0 and their sum less than 1"
            place, value = "--validation and --test", (self.validation, self.test)
            raise DataError("data.no_training_fraction", rule, place=place, value=value, remedy="Lower one of them.")

    @property
    def shares(self) -> Mapping[str, float]:
        """Split -> its share."""
        return {"train": 1 - self.validation - self.test, "validation": self.validation, "test": self.test}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written.

    Attributes:
        out: the folder.
        image_root: where the rows' paths start, absolute.
        group: the column that no two splits share a value of.
        splits: split -> its file; a split without rows has none.
        classes: diagnosis -> split -> rows.
        groups: split -> distinct groups in it.
        notes: what was left out, lacked something or was changed, counted.
    """

    out: Path
    image_root: Path
    group: str
    splits: Mapping[str, Path]
    classes: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]
    notes: tuple[Dropped, ...]

    @property
    def rows(self) -> int:
        """Rows in all splits."""
        return sum(sum(counts.values()) for counts in self.classes.values())
