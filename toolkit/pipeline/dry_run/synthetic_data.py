"""Replace a recipe's own rows by synthetic data, and remove settings that need columns of the own rows."""

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
"""Kind of synthetic data -> the columns of its rows."""

SIZE = 224
"""Image width in pixels."""


def synthetic_data_changes(recipe: Recipe, rows: Mapping[str, int]) -> dict[str, Any]:
    """Return dotted key -> value that replaces a recipe's own rows by synthetic data of its task.

    Columns that synthetic rows lack are removed. The evaluated split and those with files have rows.

    Args:
        recipe: the recipe of the real run.
        rows: split -> number of rows.
    """
    data = recipe.data
    kind = next(kind for kind, task in SYNTHETIC_TASKS.items() if task == data.task)
    columns = COLUMNS[kind]
    wanted = data.validation or data.split.validation or (recipe.evaluate and recipe.evaluate.split == "validation")
    counts = {**rows, "validation": rows["validation"] if wanted else 0}
    changes: dict[str, Any] = {
        "data.synthetic": {"kind": kind, "size": SIZE, **counts},
        **dict.fromkeys(("data.train", "data.validation", "data.test", "data.image_root")),
        "data.columns": {},
        "data.group": data.group if data.group in columns else None,
        "data.lesion.labels": None,
        "prompt.context": tuple(name for name in recipe.prompt.context if name in columns),
    }
    if recipe.evaluate and recipe.evaluate.by is not None:
        known = columns | TASKS[data.task].columns.keys()
        changes["evaluate.by"] = tuple(name for name in recipe.evaluate.by if name in known)
    if data.task == "steps":
        steps = Steps()
        changes |= {
            f"data.steps.{name}": getattr(steps, name) for name in ("actions", "places", "task_start", "task_end")
        }
    return changes
