"""The registered tasks by name."""

import copyreg
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from toolkit.data.cells import cell, text_of
from toolkit.data.groups import read_group
from toolkit.data.row_images import read_images
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import RowOrigin, SetMetrics, Synthetic, Task
from toolkit.errors import RowProblem
from toolkit.recipe.user_code import USER_CODE
from toolkit.tasks.chat import CHAT
from toolkit.tasks.classify import CLASSIFY
from toolkit.tasks.detect import DETECT
from toolkit.tasks.lesion import LESION
from toolkit.tasks.mcq import MCQ
from toolkit.tasks.report_generation import REPORT_GENERATION
from toolkit.tasks.steps import STEPS
from toolkit.tasks.user_task import load_task
from toolkit.tasks.vqa import VQA

__all__ = [
    "TASKS",
    "Answer",
    "RowOrigin",
    "RowProblem",
    "Sample",
    "SetMetrics",
    "Synthetic",
    "Task",
    "Tasks",
    "cell",
    "read_group",
    "read_images",
    "text_of",
]


class Tasks(Mapping[str, Task]):
    """The package's tasks by name. ``tasks["file.py:TASK"]`` loads a custom task, which iteration does not list."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def __getitem__(self, name: str) -> Task:
        """Return a task.

        Raises:
            KeyError: no task has this name.
            RecipeError: the file has no valid task.
        """
        if name not in self._tasks and USER_CODE.fullmatch(name):
            return load_task(name, frozenset(self._tasks))
        return self._tasks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __reduce__(self) -> str:
        """Return the global name by which pickle finds the tasks in another process."""
        return "TASKS"


TASKS = Tasks((MCQ, VQA, CLASSIFY, LESION, DETECT, STEPS, CHAT, REPORT_GENERATION))


def _reduce_task(task: Task) -> tuple[Any, ...]:
    """Return how pickle finds a task in another process. The functions of the task need not be picklable."""
    return TASKS.__getitem__, (task.entry or task.name,)


copyreg.pickle(Task, _reduce_task)
