"""Options and result of a preparation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.data import RowCount
from toolkit.errors import DataError
from toolkit.runfolder import Progress, no_progress
from toolkit.scoring.regions import MaskReading


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """Options of a preparation.

    Attributes:
        out: Output folder, created if it is missing.
        seed: Seed of the split and of the images on the contact sheet.
        validation: Fraction of each class's images in the validation split. ``validation + test`` is less than 1.
        test: Fraction of each class's images in the test split.
        workers: Processes that read masks. None means one per core.
        progress: Called with the number of measured images.
        notify: Called with the signal number, inside the signal handler, when a signal requests a stop.
        mask_values: How masks with more than two values are read: ``two`` is an error, ``any`` one foreground of all
            values but 0, and ``each`` regions of each value but 0.
        force: Rename files of ``out`` that no preparation wrote to ``NAME.old-1``, instead of raising an error.
    """

    out: Path
    seed: int = 3407
    validation: float = 0.1
    test: float = 0.2
    workers: int | None = None
    progress: Progress = no_progress
    notify: Callable[[int], None] = lambda number: None
    mask_values: MaskReading = "two"
    force: bool = False

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            rule = "the fractions must be at least 0 and their sum less than 1"
            place, value = "--validation and --test", (self.validation, self.test)
            raise DataError("data.no_training_fraction", rule, place=place, value=value, remedy="Lower one of them.")

    @property
    def fractions(self) -> Mapping[str, float]:
        """Split -> its fraction of the images."""
        return {"train": 1 - self.validation - self.test, "validation": self.validation, "test": self.test}


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """Files and counts of a finished preparation.

    Attributes:
        columns: Columns of the rows.
        out: Output folder.
        image_root: Absolute folder that image paths in the rows are relative to.
        group: Group column. No value of it is in two splits.
        splits: Split -> its JSON file. A split without rows has no file.
        classes: Diagnosis -> split -> number of rows.
        groups: Split -> number of distinct groups.
        notes: Rows and files that were left out, incomplete or changed, with counts.
        labels: TOML file with the diagnoses of the rows. None if the task knows them already.
        answer: Parts of an answer that the rows have. Empty: those that the task requests by default.
    """

    columns: tuple[str, ...]
    out: Path
    image_root: Path
    group: str
    splits: Mapping[str, Path]
    classes: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]
    notes: tuple[RowCount, ...]
    labels: Path | None = None
    answer: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in all splits."""
        return sum(sum(counts.values()) for counts in self.classes.values())
