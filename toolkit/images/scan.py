"""Scan before training: every distinct image is checked, and all problems are reported together."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Literal

from toolkit.errors import ImageError, Problem, list_places, list_problems
from toolkit.identifiers import hidden_id
from toolkit.images.policy import ImageRecord
from toolkit.images.ref import ImageRef
from toolkit.images.render import header_notes
from toolkit.images.store import ImageStore

ScanMode = Literal["auto", "full", "header", "off"]

FULL_UP_TO = 20_000
"""Maximum number of images that ``auto`` decodes. Above it, only headers and file ends are checked."""

BATCH, WORKERS = 256, 2
"""Images and threads of a batch."""

SHOWN = 10
EXAMPLES = 5

PATCH = 14
"""Side of a patch in pixels, as in SigLIP and Qwen2-VL. An image with a smaller side shows next to nothing."""

NOTES: Mapping[str, str] = {
    "images.first_frame": "only the first frame of a file with several is used (name#1 is the second)",
    "images.colour_stretched": "a colour image above 8 bits is stretched by its window, which changes its colours",
    "images.not_windowed": "an image of 8 bits keeps its values, because images.window applies to more bits only",
    "images.no_value_below_zero": "an image has no value below 0 HU and may not be CT",
    "images.smaller_than_patch": f"a side of an image has less than {PATCH} pixels, a patch of most vision towers",
    "images.constant": "all pixels of an image have one value, as in an export that failed",
    "images.pixels_not_square": "the pixels of a slice are not square, so its shapes are squeezed",
    "images.slices_renumbered": "slices count along RAS (from inferior, posterior, left), unlike the array of the file",
}
"""Code of what a reader must know about an image -> the sentence about it."""


@dataclass(frozen=True, slots=True)
class ScanNote:
    """Usable images with the same note. ``examples`` has at most five of them, by row or by hashed name."""

    code: str
    count: int
    examples: tuple[str, ...]
    refs: tuple[ImageRef, ...] = field(default=(), compare=False)
    """The images of ``examples``."""

    @property
    def rule(self) -> str:
        """Return the sentence with the count and examples."""
        images = f"{self.count:,} image{'' if self.count == 1 else 's'}"
        return f"{images}: {NOTES[self.code]} (for example {list_places(self.examples)})"


@dataclass(frozen=True, slots=True)
class BadImage:
    """An unusable image, its error, and the place of the first row that has it, if it is known.

    Such a place is ``data/train.json, row 12, image 1``.
    """

    ref: ImageRef
    error: ImageError
    row: str = ""

    @property
    def problem(self) -> Problem:
        """Return the problem with the row as its place."""
        return self.error.at(self.row).problem if self.row else self.error.problem


@dataclass(frozen=True, slots=True)
class ScanReport:
    """Result of a scan.

    Attributes:
        mode: The mode that was applied: full, header or off.
        checked: Number of distinct images.
        bad: All unusable images, in the order of the rows.
        bad_refs: References of the images in ``bad``.
        formats, bits: Format or bits per channel -> number of usable images.
        smallest, largest: Upright source sizes (width, height) with the fewest and the most pixels.
        windowed: Number of windowed images above 8 bits (full scan).
        clipped: Number of windowed images with pixels outside their window (full scan).
        worst_clipped: Largest fraction of such pixels, in [0, 1] (full scan).
        nonfinite: Number of usable images with NaN or infinite values (full scan).
        transparent: Number of usable images with pixels that are not opaque (full scan).
        notes: What a reader must know about usable images, by code (frames and slices also in a header scan).
    """

    mode: ScanMode
    checked: int = 0
    bad: tuple[BadImage, ...] = ()
    formats: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[int, int] = field(default_factory=dict)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    windowed: int = 0
    clipped: int = 0
    worst_clipped: float = 0.0
    nonfinite: int = 0
    transparent: int = 0
    notes: tuple[ScanNote, ...] = ()
    bad_refs: frozenset[ImageRef] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bad_refs", frozenset(one.ref for one in self.bad))

    @property
    def shown_refs(self) -> frozenset[ImageRef]:
        """Return the images that messages name: all unusable ones, and the examples of notes."""
        return self.bad_refs | {ref for note in self.notes for ref in note.refs}

    def with_rows(self, row_of: Mapping[ImageRef, str]) -> "ScanReport":
        """Return the report with the place of the first row of each image in ``shown_refs``."""
        notes = (
            replace(note, examples=tuple(row_of.get(*pair) for pair in zip(note.refs, note.examples, strict=True)))
            for note in self.notes
        )
        bad = (replace(one, row=row_of.get(one.ref, "")) for one in self.bad)
        return replace(self, bad=tuple(bad), notes=tuple(notes))

    def raise_if_bad(self) -> None:
        """Raise one error with all unusable images, the first ten by name.

        Raises:
            ImageError: At least one image is unusable.
        """
        if not self.bad:
            return
        lines = list_problems(replace(one.problem, remedy="") for one in self.bad[:SHOWN])
        more = f"  and {len(self.bad) - SHOWN:,} more\n" if len(self.bad) > SHOWN else ""
        counts = f"{len(self.bad):,} of {self.checked:,}"
        rule = f"all images must be usable, and {counts} are not:\n{lines}{more}"
        remedies = " ".join(dict.fromkeys(one.error.remedy for one in self.bad if one.error.remedy))
        raise ImageError("images.unusable", rule, remedy=remedies)


def scan(
    refs: Iterable[ImageRef],
    store: ImageStore,
    mode: ScanMode = "auto",
    progress: Callable[[int], None] | None = None,
) -> ScanReport:
    """Check all distinct images of ``refs`` by the store's policy, independently of its ``unreadable``.

    Args:
        refs: Images of the rows, in order, read as a stream.
        store: A full scan reads through it and fills its caches.
        mode: The recipe's ``images.scan``.
        progress: Called from time to time with the number of checked images.

    Returns:
        The counts and all unusable images.

    Raises:
        MissingExtraError: A file is DICOM and the extra ``dicom`` is not installed.
    """
    distinct = _distinct(refs)
    if mode == "off":
        return ScanReport("off")
    if mode == "auto":
        first = list(islice(distinct, FULL_UP_TO + 1))
        mode = "full" if len(first) <= FULL_UP_TO else "header"
        distinct = chain(first, distinct)
    return _scan(distinct, store, mode, progress)


def _scan(
    distinct: Iterator[ImageRef], store: ImageStore, mode: ScanMode, progress: Callable[[int], None] | None
) -> ScanReport:
    tally = _Tally()
    check = partial(_check, store, mode)
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        while batch := list(islice(distinct, BATCH)):
            for ref, found in zip(batch, pool.map(check, batch), strict=True):
                tally.add(ref, found)
            if progress is not None:
                progress(tally.checked)
    return tally.report(mode)


def _distinct(refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
    """Yield each image once. Strings are stored instead of references, because there can be a million."""
    seen: set[str] = set()
    for ref in refs:
        key = f"{ref.path}\0{ref.part}"
        if key not in seen:
            seen.add(key)
            yield ref


def _check(store: ImageStore, mode: ScanMode, ref: ImageRef) -> ImageRecord | ImageError:
    try:
        if mode == "full":
            return store.fetch(ref).record
        header, size = store.read_header(ref), store.reduced_size(ref)
        notes = header_notes(header, ref)
        return ImageRecord(header.format, header.size, size, header.bits, notes=notes)
    except ImageError as error:
        # The traceback of a stored error would keep the whole file in RAM.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error


@dataclass(slots=True)
class _Tally:
    """Running totals of a scan."""

    checked: int = 0
    bad: list[BadImage] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    bits: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    worst_clipped: float = 0.0
    noted: dict[str, list[ImageRef]] = field(default_factory=dict)

    def add(self, ref: ImageRef, found: ImageRecord | ImageError) -> None:
        self.checked += 1
        if isinstance(found, ImageError):
            self.bad.append(BadImage(ref, found))
            return
        size = found.source_size
        self.formats[found.format] += 1
        self.bits[found.bits] += 1
        self.smallest = min(self.smallest or size, size, key=_pixels)
        self.largest = max(self.largest or size, size, key=_pixels)
        self.worst_clipped = max(self.worst_clipped, found.clipped)
        self.counts["windowed"] += found.window is not None
        self.counts["clipped"] += found.clipped > 0
        self.counts["nonfinite"] += found.nonfinite > 0
        self.counts["transparent"] += found.transparent > 0
        small = ("images.smaller_than_patch",) if min(found.size) < PATCH else ()
        for code in (*found.notes, *small):
            self.counts[code] += 1
            examples = self.noted.setdefault(code, [])
            if len(examples) < EXAMPLES and all(ref.path != one.path for one in examples):
                examples.append(ref)

    def report(self, mode: ScanMode) -> ScanReport:
        return ScanReport(
            mode=mode,
            checked=self.checked,
            bad=tuple(self.bad),
            formats=dict(self.formats),
            bits=dict(self.bits),
            smallest=self.smallest,
            largest=self.largest,
            worst_clipped=self.worst_clipped,
            notes=tuple(_note(code, self.counts.pop(code), refs) for code, refs in self.noted.items()),
            **self.counts,
        )


def _note(code: str, count: int, refs: list[ImageRef]) -> ScanNote:
    return ScanNote(code, count, tuple(f"image {hidden_id(ref.path)}" for ref in refs), tuple(refs))


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]
