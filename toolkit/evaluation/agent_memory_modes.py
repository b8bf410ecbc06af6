"""What memory does: the same questions with the reference's memory, with the model's own, and with none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from toolkit.evaluation.prompts import OFF, OWN, REFERENCE, Questions
from toolkit.models.lengths import NO_ROOM, SPECIAL
from toolkit.runfolder import Record
from toolkit.scoring.statistics import (
    BEFORE_FAILURE,
    WHOLE,
    ScoredAnswer,
    Summary,
    compare,
    episode_metrics,
    find_scored_episodes,
)

BEFORE = "share before the first failure"

COMPARED = (OWN, REFERENCE, OFF)
"""A way is compared with those behind it: own minus reference is what memory costs, own minus off what it is worth."""

Draws = tuple[int, int]
"""Resamples and seed of the bootstrap."""


def memory_record(
    questions: Questions, rows: Mapping[str, Sequence[ScoredAnswer]], summaries: Mapping[str, Summary], draws: Draws
) -> Record:
    """The record of all ways.

    ``measures``: the primary score, whole chains, and the share of a chain before its first failure. ``ways``: way ->
    name, chains (``EpisodeMetrics``), by (column -> value -> the primary score), unasked (reason -> questions), and for
    all but the reference's the whole summary. ``differences``: way -> other way -> measure -> Paired, the first minus
    the second on what both have. ``behind``: questions that no rollout reaches.
    """
    task, stands = questions.task, questions.stands
    chains = questions.carried.chains if questions.carried else WHOLE
    ways = {way: _way(questions, way, found, summaries[way], draws) for way, found in rows.items()}
    measured = {
        way: {
            task.primary: (task.primary, list(found)),
            chains: (
                WHOLE,
                whole := [one.scored_answer() for one in find_scored_episodes(found, stands, task.primary)[0]],
            ),
            BEFORE: (BEFORE_FAILURE, whole),
        }
        for way, found in rows.items()
    }
    return {
        "measures": [task.primary, chains, BEFORE],
        "ways": ways,
        "differences": {
            way: _against(way, measured, draws) for way in COMPARED[:-1] if way in rows and len(measured) > 1
        },
        "behind": len(questions.behind),
    }


def _way(questions: Questions, way: str, rows: Sequence[ScoredAnswer], summary: Summary, draws: Draws) -> Record:
    primary, stands = questions.task.primary, questions.stands
    figures = episode_metrics(rows, stands, primary, *draws)
    chains = questions.carried.chains if questions.carried else WHOLE
    found: Record = {
        "name": questions.names[way],
        "measures": {
            primary: asdict(summary.overall.scores[primary]),
            chains: asdict(figures.whole),
            BEFORE: asdict(figures.before_failure),
        },
        "chains": figures.to_dict(),
        "by": {
            column: {value: asdict(part.scores[primary]) for value, part in values.items()}
            for column, values in summary.by.items()
        },
        "unasked": dict(Counter(row.problem for row in rows if row.problem in (NO_ROOM, SPECIAL))),
    }
    return found if way == REFERENCE else {**found, "summary": summary.to_dict()}


Measured = Mapping[str, Mapping[str, tuple[str, list[ScoredAnswer]]]]
"""Way -> measure -> score and rows."""


def _against(way: str, measured: Measured, draws: Draws) -> dict[str, Any]:
    others = [other for first, other in combinations(COMPARED, 2) if first == way and other in measured]
    return {
        other: {
            measure: {**asdict(paired), "clear": paired.clear}
            for measure, (score, rows) in measured[way].items()
            if (before := measured[other][measure][1])
            and rows
            and (paired := compare(before, rows, score, *draws).paired)
        }
        for other in others
    }
