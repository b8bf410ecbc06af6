"""Compare agent-memory modes: the same prompts with the reference's memory, the model's own, and none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from toolkit.evaluation.prompts import OFF, OWN, REFERENCE, EvaluationSet
from toolkit.evaluation.results import AgentMemoryResult, Difference, ModeResult
from toolkit.models.lengths import HAS_SPECIAL_TOKEN, PROMPT_TOO_LONG
from toolkit.scoring.statistics import (
    BEFORE_FAILURE,
    WHOLE,
    ScoredAnswer,
    Summary,
    compare,
    episode_metrics,
    find_scored_episodes,
)

BEFORE = "fraction before the first failure"

COMPARED = (OWN, REFERENCE, OFF)
"""A mode is compared with the later ones. Own minus reference is the cost of errors, own minus off the benefit."""

Draws = tuple[int, int]
"""Resamples and seed of the bootstrap."""

Measured = Mapping[str, Mapping[str, tuple[str, list[ScoredAnswer]]]]
"""Mode -> metric -> score and rows."""


def compare_modes(
    questions: EvaluationSet, rows: Mapping[str, Sequence[ScoredAnswer]], summaries: Mapping[str, Summary], draws: Draws
) -> AgentMemoryResult:
    """Return the result of all modes, and their differences on common samples."""
    task, positions, episodes = questions.task, questions.positions, _name_of_whole(questions)
    measured = {
        mode: {
            task.primary: (task.primary, list(found)),
            episodes: (
                WHOLE,
                whole := [one.scored_answer() for one in find_scored_episodes(found, positions, task.primary)[0]],
            ),
            BEFORE: (BEFORE_FAILURE, whole),
        }
        for mode, found in rows.items()
    }
    return AgentMemoryResult(
        metrics=(task.primary, episodes, BEFORE),
        modes={mode: _mode_result(questions, mode, found, summaries[mode], draws) for mode, found in rows.items()},
        differences={
            mode: _differences(mode, measured, draws) for mode in COMPARED[:-1] if mode in rows and len(measured) > 1
        },
        after_missing_step=len(questions.behind),
    )


def _name_of_whole(questions: EvaluationSet) -> str:
    return questions.carried.title if questions.carried else WHOLE


def _mode_result(
    questions: EvaluationSet, mode: str, rows: Sequence[ScoredAnswer], summary: Summary, draws: Draws
) -> ModeResult:
    primary = questions.task.primary
    episodes = episode_metrics(rows, questions.positions, primary, *draws)
    return ModeResult(
        name=questions.names[mode],
        metrics={
            primary: summary.overall.scores[primary],
            _name_of_whole(questions): episodes.whole,
            BEFORE: episodes.before_failure,
        },
        episodes=episodes,
        by={
            column: {value: part.scores[primary] for value, part in values.items()}
            for column, values in summary.by.items()
        },
        skipped=dict(Counter(row.problem for row in rows if row.problem in (PROMPT_TOO_LONG, HAS_SPECIAL_TOKEN))),
        summary=None if mode == REFERENCE else summary,
    )


def _differences(mode: str, measured: Measured, draws: Draws) -> dict[str, dict[str, Difference]]:
    others = [other for first, other in combinations(COMPARED, 2) if first == mode and other in measured]
    return {
        other: {
            metric: Difference.of(compare(before, rows, score, *draws))
            for metric, (score, rows) in measured[mode].items()
            if (before := measured[other][metric][1]) and rows
        }
        for other in others
    }
