"""The interface of a task that loading a recipe needs."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from toolkit.errors import Problem
from toolkit.recipe.base import Section

if TYPE_CHECKING:
    from toolkit.recipe.sections import Recipe


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
    def has_agent_memory(self) -> bool: ...
