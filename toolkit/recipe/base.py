"""Base class of all sections of a recipe, and the interface of a task that loading a recipe needs."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from toolkit.errors import Problem

if TYPE_CHECKING:
    from toolkit.recipe.schema import Recipe


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


class RecipeSynthetic(Protocol):
    """The synthetic data of a task.

    Attributes:
        kind: its name in ``data.synthetic.kind``.
        min_size: minimum of ``data.synthetic.size``, in pixels.
        content: content of its images, such as lesions.
    """

    @property
    def kind(self) -> str: ...
    @property
    def min_size(self) -> int: ...
    @property
    def content(self) -> str: ...


class RecipeTask(Protocol):
    """The part of ``toolkit.data.task.Task`` that loading a recipe reads. Its attributes are documented there."""

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def settings_model(self) -> type[Section] | None: ...
    @property
    def check(self) -> "Callable[[Recipe], Iterable[Problem]]": ...
    @property
    def reward_weights(self) -> Mapping[str, float]: ...
    @property
    def results_by(self) -> tuple[str, ...]: ...
    @property
    def positive(self) -> str | None: ...
    @property
    def synthetic(self) -> RecipeSynthetic | None: ...
    @property
    def has_classes(self) -> bool: ...
    @property
    def has_probabilities(self) -> bool: ...
    @property
    def has_agent_memory(self) -> bool: ...
