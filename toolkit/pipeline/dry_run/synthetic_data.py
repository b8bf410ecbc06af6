"""Replace a recipe's own rows by synthetic data, and remove settings that need columns of the own rows."""

from collections.abc import Mapping
from typing import Any

from toolkit.errors import Problem, RecipeError
from toolkit.recipe import Recipe
from toolkit.tasks import Task

SIZE = 224
"""Image width in pixels."""


def synthetic_data_changes(recipe: Recipe, task: Task, rows: Mapping[str, int]) -> dict[str, Any]:
    """Return dotted key -> value that replaces a recipe's own rows by synthetic data of its task.

    Columns that synthetic rows lack are removed. The evaluated split and those with files have rows.

    Args:
        recipe: the recipe of the real run.
        task: the task of the recipe.
        rows: split -> number of rows.

    Raises:
        RecipeError: the task has no synthetic data.
    """
    data = recipe.dataset
    if task.synthetic is None:
        rule = f"must have rows for a dry run, because the task {task.name} has no synthetic data"
        remedy = "Provide the files that the recipe names, or add synthetic data to the task."
        raise RecipeError([Problem("recipe.dry_run_without_rows", rule, "data.task", data.task, remedy)])
    columns = task.synthetic.columns
    wanted = data.validation or data.split.validation or (recipe.evaluate and recipe.evaluate.split == "validation")
    counts = {**rows, "validation": rows["validation"] if wanted else 0}
    changes: dict[str, Any] = {
        "data.synthetic": {"kind": task.synthetic.kind, "size": SIZE, **counts},
        **dict.fromkeys(("data.train", "data.validation", "data.test", "data.image_root")),
        "data.columns": {},
        "data.group": data.group if data.group in columns else None,
        "prompt.context": tuple(name for name in recipe.prompt.context if name in columns),
    }
    if recipe.evaluate and recipe.evaluate.by is not None:
        known = columns | task.columns.keys()
        changes["evaluate.by"] = tuple(name for name in recipe.evaluate.by if name in known)
    return changes
