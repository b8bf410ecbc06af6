"""The registered tasks by name."""

from collections.abc import Mapping

from toolkit.data.task import RowOrigin, Task
from toolkit.tasks.lesion import LESION
from toolkit.tasks.mcq import MCQ
from toolkit.tasks.steps import STEPS
from toolkit.tasks.vqa import VQA

TASKS: Mapping[str, Task] = {task.name: task for task in (MCQ, VQA, LESION, STEPS)}

__all__ = ["TASKS", "RowOrigin", "Task"]
