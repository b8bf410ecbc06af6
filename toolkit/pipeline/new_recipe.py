"""A first recipe for new data: how each task reads the rows, the model that fits a GPU, and the text of the recipe."""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data import open_index
from toolkit.data.columns import other_columns, resolve_columns
from toolkit.data.rows import read_file, row_settings
from toolkit.data.task import Task
from toolkit.errors import DataError, Problem
from toolkit.pipeline.plan import plan_recipe
from toolkit.recipe import Recipe, load_table
from toolkit.recipe.model_kind import is_folder_name
from toolkit.tasks import TASKS

if TYPE_CHECKING:
    from toolkit.planning import Gpu

MODELS = ("google/medgemma-4b-it", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2-VL-2B-Instruct")
"""Models that are proposed, the first choice first. The plan knows their architectures without a download."""

TINY = "tiny"
TEST = 0.2
"""Fraction of the groups to hold out if the data have no test split."""
TOO_LARGE = "plan.gpu_memory_too_small"


@dataclass(frozen=True, slots=True)
class NewData:
    """The data of a new recipe, as the keys of [data] name them."""

    train: str
    test: str | None = None
    image_root: Path | None = None
    group: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    boxes: str | None = None

    def table(self, task: str, folder: Path | None = None) -> dict[str, object]:
        """Return the keys of [data]. With a folder, paths inside it are relative to it."""
        paths = {"train": self.train, "test": self.test, "image_root": self.image_root and str(self.image_root)}
        keys: dict[str, object] = {"task": task}
        keys |= {key: _written_path(path, folder) for key, path in paths.items() if path}
        if self.group:
            keys["group"] = self.group
        if self.boxes and TASKS[task].has_boxes:
            keys["boxes"] = self.boxes
        # A task that lacks a field rejects its column. The others are compared without it.
        columns = {name: column for name, column in self.columns.items() if name in ("id", *TASKS[task].columns)}
        return keys | {"split": {"test": TEST}} | ({"columns": columns} if columns else {})


@dataclass(frozen=True, slots=True)
class Reading:
    """How one task reads the rows.

    Attributes:
        task: the task.
        columns: field -> its column.
        usable: number of usable rows.
        required: number of required fields that have a column.
        fits: whether every required field has a column.
        problems: why the task cannot read the rows. Empty: it can.
        others: (field, unread column) whose name has the same meaning as the one that is read.
    """

    task: str
    columns: Mapping[str, str]
    usable: int
    required: int
    fits: bool
    problems: tuple[Problem, ...] = ()
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What the rows of new data are: their description, columns, and the readings of all tasks."""

    description: str
    columns: tuple[str, ...]
    readings: tuple[Reading, ...]

    @property
    def proposed(self) -> tuple[Reading, ...]:
        """Return the readings of the tasks whose columns no other task reads together with further ones.

        Of tasks with the same columns, those count that require the most fields. Several readings: the data do not
        decide. A task also counts if its columns fit, but a setting is missing before its rows can be read.
        """
        able = [one for one in self.readings if one.fits and (one.usable or one.problems or one.others)]
        columns = [frozenset(one.columns.values()) for one in able]
        able = [one for one, own in zip(able, columns, strict=True) if not any(own < other for other in columns)]

        def is_best(one: Reading) -> bool:
            same = [other for other in able if set(other.columns.values()) == set(one.columns.values())]
            return one.required == max(other.required for other in same)

        return tuple(filter(is_best, able))


def inspect_source(data: NewData) -> Source:
    """Read new data with every task.

    Raises:
        DataError: the source or the test source is missing, or has no known format.
    """
    index = open_index(data.train)
    if data.test is not None:
        open_index(data.test)
    readings = tuple(_read(data, task, index.columns) for task in TASKS.values())
    return Source(index.description, index.columns, readings)


def propose_model(data: NewData, task: str, gpu: "Gpu | None") -> str:
    """Return the first of ``MODELS`` whose planned GPU memory fits the GPU. Without a GPU it is the tiny model."""
    if gpu is None:
        return TINY
    for model in MODELS:
        plan = plan_recipe(_load(_sections(data, task, model)), gpu)
        if TOO_LARGE not in {one.code for one in (*plan.problems, *plan.warnings)}:
            return model
    return MODELS[-1]


def recipe_text(name: str, data: NewData, task: str, model: str, folder: Path) -> str:
    """Return the text of a new recipe with comments.

    Args:
        name: the name of the run.
        data: the data.
        task: the task.
        model: ``tiny``, a Hub name or a folder of weights.
        folder: the folder of the recipe.

    Raises:
        RecipeError: the recipe would be invalid.
    """
    keys = "\n".join(f"{key} = {_toml(value)}" for key, value in data.table(task, folder).items())
    head = _HEAD.format(
        name=_toml(name), description=TASKS[task].description, data=keys, model=_toml(_written_model(model, folder))
    )
    text = head + (_TINY_STAGES if model == TINY else _STAGES) + _LAST
    load_table(tomllib.loads(text), "the new recipe", tasks=TASKS, base=folder.absolute())
    return text


def _read(data: NewData, task: Task, available: Sequence[str]) -> Reading:
    recipe = _load(_sections(data, task.name, TINY))
    requested = row_settings(recipe, task)
    columns, problems = resolve_columns(task, requested, available)
    required = sum(any(name in columns for name in choice.split("|")) for choice in task.required)
    others = tuple(one for one in other_columns(task, requested, columns, available) if one[0] in task.one_value)
    fields = {name: column for name, column in columns.items() if name in task.columns}
    if unknown := [name for name in data.columns if name not in ("id", *task.columns)]:
        rule = f"must be fields of the task {task.name}"
        problems.append(Problem("data.field_unknown", rule, "data.columns", ", ".join(unknown), "Choose another task."))
    if problems:
        return Reading(task.name, fields, 0, required, False, tuple(problems))
    try:
        usable = len(read_file(recipe, task, data.train).samples)
    except DataError as error:
        return Reading(task.name, fields, 0, required, True, tuple(error.problems), others)
    return Reading(task.name, fields, usable, required, True, (), others)


def _sections(data: NewData, task: str, model: str) -> dict[str, object]:
    sections: dict[str, object] = {"run": {"name": "new"}, "model": {"name": model}, "data": data.table(task)}
    if model != TINY:
        sections["model"] = {"name": model, "precision": "4bit"}
    return {**sections, "sft": {"batch_size": 1, "max_steps": 1}, "evaluate": {}}


def _load(sections: dict[str, object]) -> Recipe:
    return load_table(sections, "the new recipe", tasks=TASKS)


def _written_path(path: str, folder: Path | None) -> str:
    if path.startswith("hub:"):
        return path
    absolute = Path(os.path.abspath(os.path.expanduser(path)))  # noqa: PTH100, PTH111  (a link keeps its folder)
    inside = folder is not None and absolute.is_relative_to(folder.absolute())
    return str(absolute.relative_to(folder.absolute()) if inside and folder is not None else absolute)


def _written_model(name: str, folder: Path) -> str:
    """Return a Hub name as it is, and a folder of weights as a path that starts from the folder of the recipe."""
    if not is_folder_name(name):
        return name
    path = _written_path(name, folder)
    return path if Path(path).is_absolute() else f"./{path}"


def _toml(value: object) -> str:
    """Return a text or a table of texts and numbers as TOML. JSON quotes a text the same way, except for DEL."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_HEAD = """\
# {description}. Written by `toolkit new`. Every key: docs/reference/recipe_keys.md
# Check it:  toolkit data inspect THIS_FILE --show 2
# Test it:   toolkit run THIS_FILE --dry-run
# Plan it:   toolkit plan THIS_FILE --gpu 16

[run]
name = {name}        # run folder: runs/NAME, below the working directory. The same command resumes

[data]               # relative paths start from the folder of this file
{data}

[model]
name = {model}       # tiny, a Hub name, or a folder of weights
"""

_STAGES = """\
precision = "4bit"   # bitsandbytes nf4. "16bit" needs four times the GPU memory for the weights

[lora]
r = 16
alpha = 32           # the update is multiplied by alpha / r

[sft]
learning_rate = 1e-4
epochs = 1
batch_size = 1       # rows per forward pass
accumulation = 8     # 1 x 8 rows per optimizer step
schedule = "cosine"
optimizer = "paged_adamw_8bit"
"""

_TINY_STAGES = """\
max_tokens = 1024    # prompt, image tokens and completion. Longer rows are reported, never truncated

[images]
max_side = 112       # input size of the tiny vision tower

[lora]
r = 16
alpha = 32
vision = true        # trains the tiny vision tower. Leave it out for a real model

[sft]
learning_rate = 2e-3 # a hundred times the learning rate of a large model
max_steps = 100
batch_size = 8
accumulation = 1
gradient_checkpointing = false
"""

_LAST = """\

# [grpo]             # reinforcement learning after SFT, with the task's default rewards
# max_steps = 300

[evaluate]           # before training and after each stage, on the same held-out rows
# limit = 1000       # rows drawn with the seed

[export]
to = ["adapter"]     # "merged" and "gguf" need more disk
"""
