"""GUI steps as episodes: their agent memory, and steps without a reference."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from toolkit.data.episodes import Carried
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks.steps.agent_memory import EMPTY, Memory, advance
from toolkit.tasks.steps.metrics import repeat_last
from toolkit.tasks.steps.order import HIDDEN
from toolkit.tasks.steps.schema import read

STAND_IN = "(action)"
"""Name of a column with a placeholder action, which makes a row without a reference readable. No source uses this
name."""


def stand(sample: Sample) -> EpisodePosition:
    """Return the position in the episode, which is the row's task."""
    return EpisodePosition(sample.fields["task"], sample.fields["place"], sample.fields["length"])


def put(sample: Sample, memory: Memory) -> Sample:
    """Return the sample with this agent memory in its prompt."""
    return replace(sample, fields={**sample.fields, "memory": memory})


def place_columns(sample: Sample) -> dict[str, Any]:
    """Return Task_id, step (position from 1) and image (its path)."""
    image = str(sample.images[0].path) if sample.images else ""
    return {"Task_id": sample.fields["task"], "step": sample.fields["place"], "image": image}


def value_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return action, target and coords (pixels of the screenshot), or None for missing values."""
    return {"action": values.get("action"), "target": values.get("target"), "coords": values.get("place")}


def open_row(name: str, row: Mapping[str, Any], origin: RowOrigin) -> Sample:
    """Return the sample of a row for prediction. Any answer in the row is ignored.

    Raises:
        RowProblem: The row has no task, goal or screenshot, or repeats an earlier step.
    """
    column = {field: column for field, column in origin.column.items() if field not in HIDDEN} | {"action": STAND_IN}
    row_with_action = {**row, STAND_IN: origin.settings.actions[0]}
    return replace(read(name, row_with_action, replace(origin, column=column)), reference={})


CARRIED = Carried(
    title="whole tasks",
    position=stand,
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
