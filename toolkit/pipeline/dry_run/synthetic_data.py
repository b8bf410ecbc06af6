"""Practice data in place of a recipe's own rows: which kind, and what of the recipe such rows do not have."""

from collections.abc import Mapping
from typing import Any

from toolkit.recipe import SYNTHETIC_TASKS, Recipe, Steps
from toolkit.tasks import TASKS

COLUMNS: Mapping[str, frozenset[str]] = {
    "chest": frozenset(
        {
            "question",
            "options",
            "correct_answer",
            "correct_answer_explanation",
            "ImagePath",
            "question_type",
            "PatientID",
            "PatientSex",
            "PatientAge",
            "Indication",
            "Comparison",
            "Findings",
            "Impression",
        }
    ),
    "chest_vqa": frozenset(
        {"question", "answer", "answer_type", "question_type", "image_name", "image_organ", "PatientID"}
    ),
    "lesion": frozenset(
        {
            "age",
            "area_share",
            "bbox",
            "boxes",
            "dataset",
            "dx",
            "dx_type",
            "height",
            "image",
            "image_id",
            "lesion_id",
            "localization",
            "mask",
            "mask_available",
            "polygons",
            "sex",
            "spatial_description",
            "split",
            "width",
        }
    ),
    "steps": frozenset({"Task_id", "Image_id", "Instruction", "Output", "Grounding", "Application"}),
}
"""Kind of practice data -> the columns that its rows have."""

SIZE = 224
"""Width of the pictures."""


def practice_changes(recipe: Recipe, rows: Mapping[str, int]) -> dict[str, Any]:
    """Dotted key -> value that puts practice data of the recipe's task in the place of its own rows.

    Columns that practice rows do not have leave the recipe; a split that it evaluates or names has rows.

    Args:
        recipe: as it is loaded.
        rows: split -> how many.
    """
    data = recipe.data
    kind = next(kind for kind, task in SYNTHETIC_TASKS.items() if task == data.task)
    there = COLUMNS[kind]
    wanted = data.validation or data.split.validation or (recipe.evaluate and recipe.evaluate.split == "validation")
    counts = {**rows, "validation": rows["validation"] if wanted else 0}
    changes: dict[str, Any] = {
        "data.synthetic": {"kind": kind, "size": SIZE, **counts},
        **dict.fromkeys(("data.train", "data.validation", "data.test", "data.image_root")),
        "data.columns": {},
        "data.group": data.group if data.group in there else None,
        "data.lesion.labels": None,
        "prompt.context": tuple(name for name in recipe.prompt.context if name in there),
    }
    if recipe.evaluate and recipe.evaluate.by is not None:
        known = there | TASKS[data.task].columns.keys()
        changes["evaluate.by"] = tuple(name for name in recipe.evaluate.by if name in known)
    if data.task == "steps":
        steps = Steps()
        changes |= {
            f"data.steps.{name}": getattr(steps, name) for name in ("actions", "places", "task_start", "task_end")
        }
    return changes
