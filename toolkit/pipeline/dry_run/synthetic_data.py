"""Practice data in place of a recipe's own rows: which kind, and what of the recipe such rows do not have."""

from collections.abc import Mapping
from typing import Any

from toolkit.errors import Problem, RecipeError
from toolkit.recipe import Recipe
from toolkit.tasks import Task

SIZE = 224
"""Width of the pictures."""


def practice_changes(recipe: Recipe, task: Task, rows: Mapping[str, int]) -> dict[str, Any]:
    """Dotted key -> value that puts practice data of the recipe's task in the place of its own rows.

    Columns that practice rows do not have leave the recipe; a split that it evaluates or names has rows.

    Args:
        recipe: as it is loaded.
        task: the recipe's.
        rows: split -> how many.

    Raises:
        RecipeError: the task has no synthetic rows.
    """
    data = recipe.dataset
    if task.synthetic is None:
        rule = f"a dry run of the task {task.name}, which has no synthetic rows, needs the recipe's own rows"
        remedy = "Provide the files that the recipe names, or give the task synthetic rows."
        raise RecipeError([Problem("recipe.dry_run_without_rows", rule, "data.task", data.task, remedy)])
    there = task.synthetic.columns
    wanted = data.validation or data.split.validation or (recipe.evaluate and recipe.evaluate.split == "validation")
    counts = {**rows, "validation": rows["validation"] if wanted else 0}
    changes: dict[str, Any] = {
        "data.phantom": {"kind": task.synthetic.kind, "size": SIZE, **counts},
        **dict.fromkeys(("data.train", "data.validation", "data.test", "data.image_root")),
        "data.columns": {},
        "data.group": data.group if data.group in there else None,
        "prompt.context": tuple(name for name in recipe.prompt.context if name in there),
    }
    if recipe.evaluate and recipe.evaluate.by is not None:
        known = there | task.columns.keys()
        changes["evaluate.by"] = tuple(name for name in recipe.evaluate.by if name in known)
    return changes
