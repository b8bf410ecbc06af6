"""A recipe: its sections, and what they mean together.

Loading makes the paths in ``model``, ``data`` and ``rewards`` absolute. A path in a file is relative to the file's
folder, and a path in ``--set`` to the working directory. ``run.folder`` stays relative to the working directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from toolkit.errors import Problem, RecipeError
from toolkit.recipe.base import RecipeTask, Section
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.sections import Data, Images, Lora, Model, Prompt, Run
from toolkit.recipe.stage_sections import Dpo, Evaluate, Export, Grpo, Optimisation, Rewards, Sft, Validation

Present = TypeVar("Present", bound=Section)
DATA_MISSING = "data_missing"
"""pydantic's type of the error that a recipe has neither [data] nor [imagegen]."""


class Recipe(Section):
    """A recipe. A section that is present enables its stage.

    ``data`` is required. A recipe with ``imagegen`` has only ``run`` and ``images`` in addition.
    ``recipe_model`` returns the class that knows the tasks. This class itself accepts no section of a task.
    """

    tasks: ClassVar[Mapping[str, RecipeTask]] = {}
    """The tasks that ``data.task`` may name."""

    run: Run
    model: Model = Model()
    lora: Lora = Lora()
    data: Data | None = None
    images: Images = Images()
    prompt: Prompt = Prompt()
    sft: Sft | None = None
    dpo: Dpo | None = None
    grpo: Grpo | None = None
    rewards: Rewards = Rewards()
    validation: Validation | None = None
    evaluate: Evaluate | None = None
    export: Export | None = None
    imagegen: Imagegen | None = None

    @model_validator(mode="after")
    def _has_data(self) -> "Recipe":
        if self.data is None and self.imagegen is None:
            raise PydanticCustomError(DATA_MISSING, "must have a section [data] or [imagegen]")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the recipe in another process, where ``recipe_model`` makes the class again."""
        task = None if self.data is None else self.data.task
        from toolkit.recipe.load import restore_recipe  # load imports this module

        return restore_recipe, (self.tasks, task, self.model_dump())

    @property
    def run_folder(self) -> Path:
        """Return ``run.folder/run.name``, relative to the working directory."""
        return self.run.folder / self.run.name

    @property
    def dataset(self) -> Data:
        """Return the section [data] of a vision-language model's recipe.

        Raises:
            RecipeError: The recipe has [imagegen], whose data are its own.
        """
        return self._present("data", self.data)

    @property
    def task(self) -> RecipeTask:
        """Return the task that ``data.task`` names."""
        return self.tasks[self.dataset.task]

    @property
    def settings(self) -> Any:
        """Return the section [data.<task>] of the recipe's task, or None if the task has no settings."""
        return getattr(self.data, self.task.name, None)

    @property
    def sections_of_other_tasks(self) -> tuple[str, ...]:
        """Return the names of the sections [data.<task>] of other tasks."""
        inner = set(type(self.dataset).model_fields) - set(Data.model_fields)
        return tuple(sorted(inner - {self.task.name}))

    @property
    def evaluation(self) -> Evaluate:
        """Return the settings of evaluation: the recipe's section, otherwise the defaults."""
        return self.evaluate or Evaluate()

    @property
    def export_settings(self) -> Export:
        """Return the settings of export: the recipe's section, otherwise the defaults."""
        return self.export or Export()

    @property
    def sft_settings(self) -> Sft:
        """Return the section [sft].

        Raises:
            RecipeError: The recipe has no SFT.
        """
        return self._present("sft", self.sft)

    @property
    def dpo_settings(self) -> Dpo:
        """Return the section [dpo].

        Raises:
            RecipeError: The recipe has no DPO.
        """
        return self._present("dpo", self.dpo)

    @property
    def grpo_settings(self) -> Grpo:
        """Return the section [grpo].

        Raises:
            RecipeError: The recipe has no GRPO.
        """
        return self._present("grpo", self.grpo)

    def _present(self, name: str, section: Present | None) -> Present:
        if section is None:
            rule = f"must have a section [{name}]"
            raise RecipeError([Problem("recipe.section_missing", rule, self.run.name, remedy="Add it.")])
        return section

    @property
    def training(self) -> Mapping[str, Optimisation]:
        """Return the sections of the training stages, in the order of the stages: sft, dpo, grpo."""
        sections = {"sft": self.sft, "dpo": self.dpo, "grpo": self.grpo}
        return {name: section for name, section in sections.items() if section is not None}

    @property
    def results_by(self) -> tuple[str, ...]:
        """Return the columns by whose values the score is reported."""
        return self.task.results_by if self.evaluation.by is None else self.evaluation.by

    @property
    def positive(self) -> str | None:
        """Return the label that is compared with all others, or None."""
        return self.evaluation.positive or self.task.positive

    @property
    def reward_weights(self) -> Mapping[str, float]:
        """Return reward name -> weight: the task's defaults, 1 for custom rewards, then the recipe's own weights."""
        custom = {name.rpartition(":")[2]: 1.0 for name in self.rewards.custom}
        return {**self.task.reward_weights, **custom, **self.rewards.weights}
