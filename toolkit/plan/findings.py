"""What a plan has to say of a run: problems that it cannot work with, and warnings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem or warning: ``place`` is a recipe's key or a folder."""

    place: str
    text: str
    remedy: str = ""
    problem: bool = True
    """The run cannot work, as far as the plan can tell; else a warning."""
    certain: bool = True
    """Known, not estimated: `toolkit run` stops for it."""

    def __str__(self) -> str:
        remedy = f". {self.remedy}" if self.remedy else ""
        return f"{self.place}: {self.text}{remedy}"


def warning(place: str, text: str, remedy: str = "") -> Finding:
    """Something to know of; the run can work."""
    return Finding(place, text, remedy, problem=False, certain=False)
