"""The content of a report, independent of its format: sections with texts, tables, plots, matrices and examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from toolkit.data.shapes import Shape


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. A ``warning`` is marked."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Literal["plain", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts. All columns but the first ``names`` are aligned to the right."""

    kind: ClassVar[str] = "table"
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    names: int = 1

    @classmethod
    def of(cls, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", names: int = 1) -> "Table":
        """Return the table of any sequences."""
        return cls(tuple(head), tuple(map(tuple, rows)), caption, names)


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot and its figures. Formats without images show only the table.

    Attributes:
        title: the heading of the plot.
        svg: the drawing, escaped. Its colours are CSS variables.
        table: the plotted figures.
        wide: whether the plot takes the whole width of the page.
    """

    title: str
    svg: str
    table: Table
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Plots:
    """Plots beside each other."""

    kind: ClassVar[str] = "plots"
    plots: tuple[Plot, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix. ``counts`` has one row per true label, and its columns are ``columns``."""

    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Matrices:
    """Confusion matrices beside each other."""

    kind: ClassVar[str] = "matrices"
    matrices: tuple[Matrix, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A text in its own lines, such as a recipe."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image as a data URI, or the reason why it is missing. ``size`` is that of the original or its crop."""

    uri: str
    size: tuple[int, int] = (0, 0)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One completion of an example.

    Attributes:
        label: the evaluation.
        text: the completion.
        score: the primary score. None: it does not apply.
        problem: why the completion could not be parsed, or None.
        truncated: whether generation stopped at the token limit.
        rewards: reward -> value and reason, for the rewards of the recipe.
        probabilities: class -> probability, most probable first.
        shapes: what the completion names in the image.
    """

    label: str
    text: str
    score: float | None
    problem: str | None
    truncated: bool
    rewards: Mapping[str, tuple[float | None, str]] = field(default_factory=dict)
    probabilities: Mapping[str, float] = field(default_factory=dict)
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its images, reference and completions, in the order of the evaluations.

    Attributes:
        name: the hash of the sample's id.
        place: the number of its row, such as ``row 12``.
        question: the text of the question.
        reference: the answer that SFT learns.
        outcome: that of the last completion: ``right``, ``partly``, ``wrong``, ``unreadable``, or ``answered`` without
            a score.
        changed: whether the score differs between the first and the last completion.
        worst: its place among the worst cases, from 1. 0: it is none of them.
        images: the images.
        shapes: what the reference has in the first image.
        replies: the completions.
    """

    name: str
    place: str
    question: str
    reference: str
    outcome: str
    changed: bool
    worst: int
    images: tuple[EmbeddedImage, ...]
    shapes: tuple[Shape, ...]
    replies: tuple[Reply, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of an evaluation with filters."""

    kind: ClassVar[str] = "examples"
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """Images of a generator: one row per prompt, one column per round or arm."""

    kind: ClassVar[str] = "grid"
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[EmbeddedImage, ...]], ...]
    caption: str = ""


Block = Text | Table | Plots | Matrices | Code | Examples | ImageGrid


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a report with a heading. ``blocks`` is never empty."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """All sections of one run, or of the comparison of several."""

    id: str
    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A report.

    Attributes:
        title: its heading.
        facts: name -> value, below the heading.
        parts: its parts.
        has_rows: whether it has texts or images of rows, so that only the owner may read it.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    has_rows: bool
