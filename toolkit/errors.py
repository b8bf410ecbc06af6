"""The exception tree: every message says where, what was found, which rule it breaks, and what to do.

ToolkitError
├── RecipeError        the TOML: all problems at once
├── DataError          rows, columns, splits, leaks
│   └── RowProblem     one row that cannot be used (counted, never shown as a crash)
│       └── MissingPicture  because its picture is not there
├── ImageError         one picture that cannot be read
├── RewardError        a reward that raised, left [0, 1], or is not there
├── ModelError         a model, processor, adapter or chat template that cannot do what is asked
├── TrainingError      a training that cannot learn, or a library that rewrote what the recipe said
├── PlanError          a run that cannot work, found before it began
├── RunError           the run folder: in use, changed, incomplete
├── MissingExtraError  an optional dependency that is not installed
└── Interrupted        a signal; the state was saved
"""

from dataclasses import dataclass

_NOTHING = object()


class ToolkitError(Exception):
    """A user's problem, told without a traceback.

    Args:
        rule: what must hold, as a sentence without its final full stop, or as a list that ends with a new line.
        place: file and key, row or image where it does not hold.
        value: what was found there (left out of the message when not given).
        remedy: what to do about it.
    """

    exit_code = 1

    def __init__(self, rule: str, *, place: object = "", value: object = _NOTHING, remedy: str = "") -> None:
        self.rule, self.place, self.remedy = rule, str(place), remedy
        self.value = None if value is _NOTHING else value
        found = "" if value is _NOTHING else f" (found {_shorten(value)})"
        head = f"{place}: " if str(place) else ""
        listed = rule.endswith("\n") and not found
        tail = remedy if listed else f". {remedy}" if remedy else ""
        super().__init__(f"{head}{rule}{found}{tail}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a recipe: ``place`` is file and key, ``text`` the rule, the value and the remedy."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class RecipeError(ToolkitError):
    """A recipe that cannot be run; ``problems`` holds every one that was found."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = list(problems)
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        super().__init__(f"the recipe has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))


class DataError(ToolkitError):
    """Rows, columns, splits or leaks that make a data set unusable."""


class RowProblem(DataError):
    """One row that cannot be used. ``reason`` is a short constant: rows are counted under it."""

    def __init__(self, reason: str, **details: object) -> None:
        self.reason = reason
        super().__init__(reason, **details)  # type: ignore[arg-type]


class MissingPicture(RowProblem):
    """A row that cannot be used as long as its picture is not there: what was found is not remembered."""


class ImageError(ToolkitError):
    """A picture that is missing, unreadable, truncated, too large or outside the data root."""


class RewardError(ToolkitError):
    """A reward that raised, gave something outside [0, 1], or does not exist."""


class ModelError(ToolkitError):
    """A model, processor, adapter or chat template that cannot do what the recipe asks."""


class TrainingError(ToolkitError):
    """A training that cannot learn anything, or whose settings a library rewrote."""


class PlanError(ToolkitError):
    """A run that its plan shows cannot work: every such problem at once."""


class RunError(ToolkitError):
    """A run folder that belongs to another recipe, is in use, or lacks what a stage needs."""


class MissingExtraError(ToolkitError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            remedy=f"Install it with: pip install -e '.[{extra}]' -c constraints.txt",
        )


class Interrupted(ToolkitError):
    """A signal ended the run after the step was finished and saved; the same command goes on from there."""

    def __init__(self, signal_number: int, saved: str, remedy: str = "Run the same command again to go on.") -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by signal {signal_number}; {saved}", remedy=remedy)


def _shorten(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
