"""Expert ratings of images: read from files, checked row by row, and grouped by image.

A row that cannot be used is counted under its reason with an example. Nothing is coerced: a value that breaks a rule is
never changed to one that keeps it. A rating is stored as its level, the rank in ``rating_range`` from 0 (worst).
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from toolkit.data import RowCount, Tally, row_cache, source_folder
from toolkit.data.embedded_images import EmbeddedImageStore
from toolkit.data.row_counts import total
from toolkit.data.sources import find_source, stream_source
from toolkit.errors import DataError, ImageError, RowProblem, list_places
from toolkit.identifiers import described
from toolkit.images import image_ref
from toolkit.images.ref import ImageRef
from toolkit.recipe.imagegen import Imagegen

REQUIRED = ("image_path", "rating", "modality", "expert_level", "prompt")
OPTIONAL = ("patient_id", "rater_id")
SHARED = ("modality", "prompt", "patient")
"""Fields on which all rows of an image must agree."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Rating:
    """One rating of one image by one expert.

    Attributes:
        level: rank of the rating in ``rating_range``, from 0 (worst).
        expert_level: the expert's level, one of ``expert_levels``.
        rater: the expert's id. Empty: unknown.
        place: file and row.
    """

    level: int
    expert_level: int
    rater: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class RatedImage:
    """An image, its prompt, and all of its ratings in the order of the rows.

    Attributes:
        name: the path relative to the image root, the same on every machine. Equal names end in #2, #3, ….
        image: the file.
        modality: one of ``modalities``.
        prompt: the text that the image was generated from, or that describes it.
        ratings: at least one.
        patient: the patient's id. Empty: unknown.
    """

    name: str
    image: ImageRef
    modality: str
    prompt: str
    ratings: tuple[Rating, ...]
    patient: str = ""

    @property
    def group(self) -> str:
        """The patient, or the image if the patient is unknown. No group is in two splits."""
        return f"patient {self.patient}" if self.patient else f"image {self.name}"

    @property
    def levels(self) -> tuple[int, ...]:
        """The level of each rating."""
        return tuple(rating.level for rating in self.ratings)


@dataclass(frozen=True, slots=True)
class Ratings:
    """Rated images in the order of their first rows.

    Attributes:
        images: every image with at least one usable row, once.
        rating_range: the value of each level.
        rows: rows that were read, usable or not.
        dropped: rows that cannot be used, by reason.
    """

    images: tuple[RatedImage, ...]
    rating_range: tuple[float, ...]
    rows: int = 0
    dropped: tuple[RowCount, ...] = ()

    @property
    def count(self) -> int:
        """Number of ratings."""
        return sum(len(image.ratings) for image in self.images)

    @property
    def pairs(self) -> tuple[tuple[RatedImage, Rating], ...]:
        """Each rating with its image: the rows that are trained on."""
        return tuple((image, rating) for image in self.images for rating in image.ratings)

    @property
    def prompts(self) -> Mapping[str, tuple[str, ...]]:
        """Modality -> its distinct prompts, both in the order of their first images."""
        found: dict[str, dict[str, None]] = {}
        for image in self.images:
            found.setdefault(image.modality, {})[image.prompt] = None
        return {modality: tuple(prompts) for modality, prompts in found.items()}

    def level_counts(self) -> tuple[int, ...]:
        """Return the number of ratings of each level."""
        levels = [level for image in self.images for level in image.levels]
        return tuple(levels.count(level) for level in range(len(self.rating_range)))

    def normalised(self, level: float) -> float:
        """Return a level, or a mean of levels, as a number from 0 (worst) to 1 (best), by rank.

        >>> Ratings((), (1, 2, 5)).normalised(1)
        0.5
        """
        return level / (len(self.rating_range) - 1)

    def only(self, images: Sequence[RatedImage]) -> "Ratings":
        """Return the same ratings restricted to some of their images."""
        return replace(self, images=tuple(images), rows=sum(len(image.ratings) for image in images), dropped=())


def load_ratings(section: Imagegen, files: Sequence[str] | None = None) -> Ratings:
    """Read all ratings.

    Args:
        section: files, image root, rating levels, modalities, expert levels, and the allowed fraction of unusable rows.
        files: read these instead of ``section.ratings``, such as the file of synthetic ratings.

    Raises:
        DataError: a file or a column is missing, no row can be used, or more rows than ``max_dropped`` cannot.
    """
    rows: list[_Row] = []
    tallies: list[RowCount] = []
    for source in section.ratings if files is None else files:
        found, dropped = _read_file(source, section)
        rows += found
        tallies += dropped
    images, conflicts = _group_by_image(rows)
    dropped_rows = (*tallies, *conflicts)
    count = len(rows) + total(tallies)
    _check_dropped(section, count, dropped_rows)
    return Ratings(images, section.rating_range, count, dropped_rows)


@dataclass(frozen=True, slots=True)
class _Row:
    """One usable row."""

    name: str
    image: ImageRef
    modality: str
    prompt: str
    patient: str
    rating: Rating


def _read_file(source: str, section: Imagegen) -> tuple[list[_Row], tuple[RowCount, ...]]:
    embedded = EmbeddedImageStore(row_cache() / "images")
    records = [record for _, record, _ in stream_source(find_source(source, key="imagegen.ratings"), embedded)]
    _require_columns(source, records)
    # Images inside the file (Parquet) were written to the cache, whatever the image root is.
    root = embedded.folder if embedded.used else section.image_root or source_folder(source)
    if root is None:
        remedy = "Set imagegen.image_root to the folder that the paths start from."
        raise DataError(
            "imagegen.image_root_missing",
            "relative image paths must have an image root",
            place=source,
            remedy=remedy,
        )
    # Not Path.resolve: following a link would change the folder that relative paths start from.
    reader = _Reader(section, Path(os.path.abspath(root)), Path(source).name)  # noqa: PTH100
    rows, tally = [], Tally()
    for number, record in enumerate(records, start=1):
        try:
            rows.append(reader.read(record, number))
        except RowProblem as problem:
            tally.add(_reason(problem), problem.place, problem.code, problem.value)
    return rows, tally.of(source)


def _reason(problem: RowProblem) -> str:
    return f"{problem.rule}. {problem.remedy}".rstrip(". ")


def _require_columns(source: str, records: Sequence[Any]) -> None:
    columns = {column for record in records if isinstance(record, dict) for column in record}
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        hints = [(name, get_close_matches(name, columns - set(REQUIRED), n=1)) for name in missing]
        remedy = " ".join(f"Did you mean {close[0]!r} for {name!r}?" for name, close in hints if close)
        raise DataError(
            "imagegen.columns_missing",
            f"the columns {', '.join(REQUIRED)} must exist",
            place=source,
            value=f"without {', '.join(missing)}",
            remedy=remedy or f"The columns are {', '.join(sorted(columns)) or 'none'}.",
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    """The section, image root and file that rows are checked against."""

    section: Imagegen
    root: Path
    file: str

    def read(self, record: Any, number: int) -> _Row:
        """Return the row.

        Raises:
            RowProblem: a value breaks a rule.
        """
        place = f"{self.file}, row {number}"
        if not isinstance(record, dict):
            raise RowProblem(
                "imagegen.row_not_a_record",
                "a row must be a record with named fields",
                place=place,
                value=described(record),
            )
        image = self._image(record, place)
        return _Row(
            name=image.path.relative_to(self.root).as_posix(),
            image=image,
            modality=self._modality(record, place),
            prompt=_text(record, "prompt", place),
            patient=_id(record, "patient_id", place),
            rating=Rating(
                self._level(record, place),
                self._expert_level(record, place),
                _id(record, "rater_id", place),
                place,
            ),
        )

    def _image(self, record: Mapping[str, Any], place: str) -> ImageRef:
        text = _text(record, "image_path", place)
        try:
            ref = image_ref(text, self.root, place)
        except ImageError:
            rule, remedy = "image_path must stay inside the image root", "Set imagegen.image_root to their folder."
            raise RowProblem(
                "imagegen.image_outside_root", rule, place=place, value=described(text), remedy=remedy
            ) from None
        if not ref.path.is_file():
            remedy = "Correct image_path, or set imagegen.image_root to the images' folder."
            raise RowProblem(
                "imagegen.image_missing", "the image must exist", place=place, value=described(text), remedy=remedy
            )
        return ref

    def _modality(self, record: Mapping[str, Any], place: str) -> str:
        text = _text(record, "modality", place)
        if text not in self.section.modalities:
            known = ", ".join(self.section.modalities)
            rule, remedy = f"modality must be one of {known}", "Correct it, or add it to imagegen.modalities."
            raise RowProblem("imagegen.modality_unknown", rule, place=place, value=text, remedy=remedy)
        return text

    def _level(self, record: Mapping[str, Any], place: str) -> int:
        levels = self.section.rating_range
        value = record.get("rating")
        number = _number(value)
        if number not in levels:
            known = ", ".join(f"{level:g}" for level in levels)
            rule, remedy = f"rating must be one of {known}", "Correct it, or set imagegen.rating_range to all levels."
            raise RowProblem("imagegen.rating_unknown", rule, place=place, value=value, remedy=remedy)
        return levels.index(number)

    def _expert_level(self, record: Mapping[str, Any], place: str) -> int:
        value = record.get("expert_level")
        number = _number(value)
        if number not in self.section.expert_levels:
            known = ", ".join(map(str, self.section.expert_levels))
            rule = f"expert_level must be one of {known}"
            remedy = "Correct it, or set imagegen.expert_levels to all levels."
            raise RowProblem("imagegen.expert_level_unknown", rule, place=place, value=value, remedy=remedy)
        return int(number)


def _text(record: Mapping[str, Any], column: str, place: str) -> str:
    value = record.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        rule, remedy = f"{column} must not be empty", "Fill it in, or remove the row."
        raise RowProblem("imagegen.cell_empty", rule, place=place, value=described(value), remedy=remedy)
    if not isinstance(value, str) or value != value.strip():
        rule, remedy = f"{column} must be text without blanks at its ends", "Remove the blanks."
        raise RowProblem("imagegen.cell_not_plain_text", rule, place=place, value=described(value), remedy=remedy)
    return value


def _id(record: Mapping[str, Any], column: str, place: str) -> str:
    """Return an optional id. Files with types may store it as a whole number."""
    value = record.get(column)
    if value is None or value == "":
        return ""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(record, column, place)


def _number(value: object) -> float | None:
    """Return a value as a number. None: it is neither a number nor its text (in CSV files every cell is text)."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _group_by_image(rows: Sequence[_Row]) -> tuple[tuple[RatedImage, ...], tuple[RowCount, ...]]:
    """Return images with their ratings, and the dropped rows of images whose rows contradict each other."""
    by_image: dict[ImageRef, list[_Row]] = defaultdict(list)
    for row in rows:
        by_image[row.image].append(row)
    images, tally = [], Tally()
    names: Counter[str] = Counter()
    for ref, group in by_image.items():
        conflicts = [(name, values) for name in SHARED if len(values := _distinct(group, name)) > 1]
        if conflicts:
            for row in group:
                reason, value = _conflict(*conflicts[0])
                tally.add(reason, row.rating.place, "imagegen.image_rows_conflict", value)
            continue
        first = group[0]
        names[first.name] += 1
        name = first.name if names[first.name] == 1 else f"{first.name}#{names[first.name]}"
        ratings = tuple(row.rating for row in group)
        images.append(RatedImage(name, ref, first.modality, first.prompt, ratings, first.patient))
    return tuple(images), tally.of("ratings")


def _distinct(group: Sequence[_Row], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(getattr(row, name)) for row in group))


def _conflict(name: str, values: tuple[str, ...]) -> tuple[str, object]:
    """Return the reason, and the values if they are not those of a patient or a free text."""
    column = "patient_id" if name == "patient" else name
    reason = f"all rows of an image must have the same {column}. Correct the rows, or copy the image for each {column}"
    return reason, list(values) if name == "modality" else described(values)


def _check_dropped(section: Imagegen, count: int, dropped: Sequence[RowCount]) -> None:
    lost = total(dropped)
    if lost < count and lost <= section.max_dropped * count:
        return
    raise DataError(
        "imagegen.too_many_rows_unusable",
        f"at most {section.max_dropped:.1%} of the rows may be unusable, and at least one must be usable",
        place="imagegen.ratings",
        value=f"{lost:,} of {count:,}",
        remedy="Correct the rows, or raise imagegen.max_dropped:" + "".join(_lines(dropped)),
    )


def _lines(dropped: Sequence[RowCount]) -> Iterator[str]:
    for one in dropped:
        yield f"\n  {one.count:,} rows of {Path(one.source).name}: {one.reason} (for example {list_places(one.shown)})"
