"""How the steps of a task hang together: their memory, and a step that is only asked."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from toolkit.data.agent_memory import Carried
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.scoring.statistics import Stand
from toolkit.tasks.steps.agent_memory import EMPTY, Memory, advance
from toolkit.tasks.steps.metrics import repeat_last
from toolkit.tasks.steps.order import HIDDEN
from toolkit.tasks.steps.schema import read

STAND_IN = "(action)"
"""The column of the action that a row gets so that it can be read; no source has one of this name."""


def stand(sample: Sample) -> Stand:
    """The task is the chain."""
    return Stand(sample.fields["task"], sample.fields["place"], sample.fields["length"])


def put(sample: Sample, memory: Memory) -> Sample:
    """The step with this memory in its prompt."""
    return replace(sample, fields={**sample.fields, "memory": memory})


def place_columns(sample: Sample) -> dict[str, Any]:
    """Task_id, step (its place, from 1), image (its path)."""
    image = str(sample.images[0].path) if sample.images else ""
    return {"Task_id": sample.fields["task"], "step": sample.fields["place"], "image": image}


def value_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """action, target and coords (pixels of the screenshot), None where there is none."""
    return {"action": values.get("action"), "target": values.get("target"), "coords": values.get("place")}


def open_row(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """A step that is only asked: whatever the row holds of an answer is not looked at.

    Raises:
        RowProblem: no task, goal or screenshot, or an earlier row's step.
    """
    column = {field: column for field, column in origin.column.items() if field not in HIDDEN} | {"action": STAND_IN}
    asked = {**row, STAND_IN: origin.settings.actions[0]}
    return replace(read(name, asked, replace(origin, column=column)), reference={})


CARRIED = Carried(
    chains="whole tasks",
    stand=stand,
    shown=lambda sample: sample.fields["settings"].shows_memory,
    held=lambda sample: sample.fields["memory"],
    start=lambda sample: EMPTY,
    put=put,
    memory_of=Memory,
    advance=advance,
    plain=asdict,
    place_columns=place_columns,
    value_columns=value_columns,
    baselines={"repeat-last baseline": repeat_last},
    open_fields=frozenset({"task", "image", "question"}),
    open_row=open_row,
)
