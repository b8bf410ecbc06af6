"""Agent memory: the state that a task with episodes passes from one row to the next, as functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.data.sample import Answer, Sample
from toolkit.scoring.statistics import EpisodePosition

if TYPE_CHECKING:
    from toolkit.data.task import RowOrigin

Memory = Any
"""The task's own; its ``==`` compares content."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Episodes of a task, and their agent memory. All functions are pure.

    Attributes:
        chains: name of a completely correct episode in tables, such as "whole tasks".
        stand: Sample -> its position in its episode.
        shown: Sample -> whether its prompt shows any agent memory.
        held: Sample -> the agent memory of its prompt. Rows are read with the memory of the reference.
        start: Sample -> the agent memory before the first row of its episode.
        put: (Sample, agent memory) -> the Sample with this agent memory in its prompt.
        memory_of: (short-term memory, long-term memory) -> the agent memory, for callers of the Python API.
        advance: (agent memory, Answer) -> the agent memory for the next row.
        plain: agent memory -> JSON-compatible mapping with ``short_term`` and ``long_term``.
        place_columns: Sample -> the first columns of a table of predictions.
        value_columns: a reference, or the values of an answer -> its columns in such a table.
        baselines: label -> (Sample -> completion): further baselines that do not use the image, scored like a model.
        open_fields: the fields that a source of unlabelled rows must have.
        open_row: (row id, row with its Link, source) -> a Sample without a reference, with the agent memory of the
            start. Raises RowProblem.
    """

    chains: str
    stand: Callable[[Sample], EpisodePosition]
    shown: Callable[[Sample], bool]
    held: Callable[[Sample], Memory]
    start: Callable[[Sample], Memory]
    put: Callable[[Sample, Memory], Sample]
    memory_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Memory]
    advance: Callable[[Memory, Answer], Memory]
    plain: Callable[[Memory], Mapping[str, Any]]
    place_columns: Callable[[Sample], Mapping[str, Any]]
    value_columns: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    baselines: Mapping[str, Callable[[Sample], str]]
    open_fields: frozenset[str]
    open_row: "Callable[[str, Mapping[str, Any], RowOrigin], Sample]"
