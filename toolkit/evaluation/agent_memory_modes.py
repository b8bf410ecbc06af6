"""Compare agent-memory modes: the same prompts with the reference's memory, the model's own, and none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from toolkit.evaluation.prompts import OFF, OWN, REFERENCE, EvaluationSet
from toolkit.models.lengths import HAS_SPECIAL_TOKEN, PROMPT_TOO_LONG
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
"""A mode is compared with the later ones. Own minus reference is the cost of errors, own minus off the benefit."""

Draws = tuple[int, int]
"""Resamples and seed of the bootstrap."""


def memory_record(
    questions: EvaluationSet, rows: Mapping[str, Sequence[ScoredAnswer]], summaries: Mapping[str, Summary], draws: Draws
) -> Record:
    """Return the record of all modes.

    ``measures``: the primary score, whole episodes, and the fraction of an episode before its first failure. ``ways``:
    mode -> name, chains (``EpisodeMetrics``), by (column -> value -> primary score), unasked (reason -> count),
    and the summary of every mode but reference. ``differences``: mode -> other mode -> measure -> Paired, the first
    minus the second on common samples. ``behind``: samples that no rollout reaches.
    """
    task, positions = questions.task, questions.positions
    chains = questions.carried.title if questions.carried else WHOLE
    modes = {mode: _way(questions, mode, found, summaries[mode], draws) for mode, found in rows.items()}
    measured = {
        mode: {
            task.primary: (task.primary, list(found)),
            chains: (
                WHOLE,
                whole := [one.scored_answer() for one in find_scored_episodes(found, positions, task.primary)[0]],
            ),
            BEFORE: (BEFORE_FAILURE, whole),
        }
        for mode, found in rows.items()
    }
    return {
        "measures": [task.primary, chains, BEFORE],
        "ways": modes,
        "differences": {
            mode: _against(mode, measured, draws) for mode in COMPARED[:-1] if mode in rows and len(measured) > 1
        },
        "behind": len(questions.behind),
    }


def _way(questions: EvaluationSet, mode: str, rows: Sequence[ScoredAnswer], summary: Summary, draws: Draws) -> Record:
    primary, positions = questions.task.primary, questions.positions
    figures = episode_metrics(rows, positions, primary, *draws)
    chains = questions.carried.title if questions.carried else WHOLE
    found: Record = {
        "name": questions.names[mode],
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
        "unasked": dict(Counter(row.problem for row in rows if row.problem in (PROMPT_TOO_LONG, HAS_SPECIAL_TOKEN))),
    }
    return found if mode == REFERENCE else {**found, "summary": summary.to_dict()}


Measured = Mapping[str, Mapping[str, tuple[str, list[ScoredAnswer]]]]
"""Way -> measure -> score and rows."""


def _against(mode: str, measured: Measured, draws: Draws) -> dict[str, Any]:
    others = [other for first, other in combinations(COMPARED, 2) if first == mode and other in measured]
    return {
        other: {
            measure: {**asdict(paired), "clear": paired.clear}
            for measure, (score, rows) in measured[mode].items()
            if (before := measured[other][measure][1])
            and rows
            and (paired := compare(before, rows, score, *draws).paired)
        }
        for other in others
    }
