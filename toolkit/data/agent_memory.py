"""What goes from one question to the next, for a task whose rows follow each other: a memory, as functions."""

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
    """How the questions of a chain hang together. All functions are pure.

    Attributes:
        chains: what a chain that is right from end to end is called in tables, such as "whole tasks".
        stand: Sample -> where it stands in its chain.
        shown: Sample -> whether its prompt shows any memory.
        held: Sample -> the memory that it is asked with; as rows are read that is the reference's.
        start: Sample -> the memory before the first question of its chain.
        put: (Sample, memory) -> the Sample as it is asked with this memory.
        advance: (memory, Answer) -> the memory for the next question.
        plain: memory -> the same as JSON has it.
        place_columns: Sample -> the first columns of a table of predictions.
        value_columns: a reference or an answer's values -> its columns in such a table.
        baselines: label -> (Sample -> completion): further answers without a look, judged as any model's.
        open_fields: the fields that a source must have whose rows are only asked.
        open_row: (row id, row with its Link, source) -> a Sample without a reference, at the start's memory; raises
            RowProblem.
    """

    chains: str
    stand: Callable[[Sample], EpisodePosition]
    shown: Callable[[Sample], bool]
    held: Callable[[Sample], Memory]
    start: Callable[[Sample], Memory]
    put: Callable[[Sample, Memory], Sample]
    advance: Callable[[Memory, Answer], Memory]
    plain: Callable[[Memory], Mapping[str, Any]]
    place_columns: Callable[[Sample], Mapping[str, Any]]
    value_columns: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    baselines: Mapping[str, Callable[[Sample], str]]
    open_fields: frozenset[str]
    open_row: "Callable[[str, Mapping[str, Any], RowOrigin], Sample]"
