"""Base class of all sections of a recipe."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from toolkit.errors import Problem


class Section(BaseModel):
    """A table of the recipe. It is frozen, and rejects unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class BrokenRules(ValueError):
    """Rules between the keys of a section that its values break.

    Args:
        problems: one for each rule. The place is a key of the section, or empty for the section.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(". ".join(map(str, self.problems)))
