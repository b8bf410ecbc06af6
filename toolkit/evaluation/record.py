"""Build the result of an evaluation: every score with its interval, baselines and differences."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.errors import warn
from toolkit.evaluation.agent_memory_modes import compare_modes
from toolkit.evaluation.context import Context
from toolkit.evaluation.generate_answers import PREDICTIONS
from toolkit.evaluation.prompts import OWN, REFERENCE, EvaluationSet
from toolkit.evaluation.results import (
    BASELINE,
    EVALUATE,
    AgentMemoryResult,
    BaselineResult,
    Difference,
    EvaluationResult,
    ScoreResult,
)
from toolkit.evaluation.scored import Baselines, Rows
from toolkit.scoring.statistics import (
    WHOLE,
    Estimate,
    ScoredAnswer,
    Summary,
    compare,
    find_scored_episodes,
    plot_confusion_matrix,
    proportion,
    summarise,
)

log = logging.getLogger(__name__)
CONFUSION = "confusion.png"

Others = tuple[Baselines, Mapping[str, Mapping[str, Rows]]]
"""The baselines, and earlier evaluation -> mode -> its rows."""


def make_result(
    context: Context, name: str, questions: EvaluationSet, rows: Mapping[str, Rows], others: Others
) -> EvaluationResult:
    """Return the result of the evaluation ``name`` from the rows of each mode, and draw the confusion matrix."""
    recipe = context.recipe
    section, seed, main = recipe.evaluation, recipe.run.seed, rows[REFERENCE]
    summary = summarise(main, recipe.results_by, section.bootstrap, seed, positive=recipe.positive)
    if summary.confusion.labels:
        plot_confusion_matrix(
            summary.confusion, context.run.stage_folder(f"evaluate-{name}") / CONFUSION, f"{name}: completions"
        )
    tables = {
        label: _score_result(context, view)
        for label, view in _views(questions, rows, others).items()
        if any(row.scores[view.score] is not None for row in view.rows)
    }
    (primary, first), *also = tables.items()
    _warn(name, "", summary)
    stage = f"{EVALUATE}{name}"
    return EvaluationResult(
        split=section.split,
        score=primary,
        value=first.value,
        baseline=first.baseline,
        differences=first.differences,
        baselines=first.baselines,
        also=dict(also),
        summary=summary,
        images=context.count_images(stage),
        predictions=f"stages/{stage}/{PREDICTIONS}",
        agent_memory=_agent_memory(context, name, questions, rows, summary) if questions.carried else None,
    )


def _agent_memory(
    context: Context, name: str, questions: EvaluationSet, rows: Mapping[str, Rows], reference: Summary
) -> AgentMemoryResult:
    """Return the comparison of the agent-memory modes. Warn about failures and skipped samples."""
    recipe = context.recipe
    by, draws = recipe.results_by, (recipe.evaluation.bootstrap, recipe.run.seed)
    summaries = {mode: summarise(found, by, *draws) for mode, found in rows.items() if mode != REFERENCE}
    for mode, found in summaries.items():
        _warn(name, f" ({questions.names[mode]})", found)
    result = compare_modes(questions, rows, {REFERENCE: reference, **summaries}, draws)
    _warn_about_skipped(name, questions, result)
    return result


@dataclass(frozen=True, slots=True)
class _View:
    """One table: a score of some rows, of the baselines on the same samples, and of earlier evaluations."""

    score: str
    rows: Rows
    baselines: Mapping[str, Rows]
    earlier: Mapping[str, Rows]


def _views(questions: EvaluationSet, rows: Mapping[str, Rows], others: Others) -> dict[str, _View]:
    """Return title -> table, with the primary score first.

    With agent memory there are also tables of the mode own and of whole episodes. The other modes are only in the
    record of the agent memory.
    """
    task, (baselines, before) = questions.task, others
    shown = [mode for mode in (REFERENCE, OWN) if mode in rows]
    views: dict[str, _View] = {}
    for mode in shown:
        ids = {row.id for row in rows[mode]}
        same = {label: [row for row in of if row.id in ids] for label, of in baselines.rows.items()}
        earlier = {name: modes[mode] for name, modes in before.items() if mode in modes}
        views[_title(task.primary, questions, mode)] = _View(task.primary, rows[mode], same, earlier)
    if questions.carried:
        steps = views[_title(task.primary, questions, shown[-1])]
        views[_title(questions.carried.title, questions, shown[-1])] = _of_chains(steps, questions)
    main = views[_title(task.primary, questions, REFERENCE)]
    for score in task.also:
        views[_title(score, questions, REFERENCE)] = _View(score, main.rows, baselines.of(score), main.earlier)
    return views


def _title(score: str, questions: EvaluationSet, mode: str) -> str:
    """Return the name of a score, with the agent-memory mode if there are several."""
    name = questions.names[mode]
    return f"{score} ({name})" if name else score


def _of_chains(view: _View, questions: EvaluationSet) -> _View:
    positions = questions.positions

    def chains(rows: Rows) -> Rows:
        return [chain.scored_answer() for chain in find_scored_episodes(rows, positions, view.score)[0]]

    return _View(
        WHOLE,
        chains(view.rows),
        {label: chains(rows) for label, rows in view.baselines.items()},
        {name: chains(rows) for name, rows in view.earlier.items()},
    )


def _score_result(context: Context, view: _View) -> ScoreResult:
    draws = (context.recipe.evaluation.bootstrap, context.recipe.run.seed)

    def minus(rows: Rows, other: Rows) -> Difference:
        return Difference.of(compare(other, rows, view.score, *draws))

    majority = view.baselines[BASELINE]
    return ScoreResult(
        value=_mean(view.rows, view.score, *draws),
        baseline=_mean(majority, view.score, *draws),
        differences={
            other: minus(view.rows, rows) for other, rows in {**view.baselines, **view.earlier}.items() if rows
        },
        baselines={
            label: BaselineResult(_mean(rows, view.score, *draws), {BASELINE: minus(rows, majority)})
            for label, rows in view.baselines.items()
            if label != BASELINE
        },
    )


def _mean(rows: Sequence[ScoredAnswer], score: str, resamples: int, seed: int) -> Estimate:
    judged = [(row.scores[score], row.group) for row in rows if row.scores[score] is not None]
    return proportion(
        [value for value, _ in judged if value is not None], [group for _, group in judged], resamples, seed
    )


def _warn(name: str, mode: str, summary: Summary) -> None:
    overall, place = summary.overall, f"evaluate-{name}{mode}"
    for code, rule, value in (
        ("evaluate.completions_truncated", "reach the token limit", overall.truncated.value),
        ("evaluate.completions_unreadable", "cannot be parsed", overall.unreadable.value),
    ):
        if value and name == "before":
            log.info("%s: %.0f%% of the completions %s (the format is not trained yet)", place, 100 * value, rule)
        elif value:
            rule = f"the fraction of completions that {rule} should be 0"
            warn(code, rule, place=place, value=round(value, 3))


def _warn_about_skipped(name: str, questions: EvaluationSet, result: AgentMemoryResult) -> None:
    """Warn about incomplete episodes, skipped prompts, and samples that no rollout reaches."""
    episodes = questions.carried.title if questions.carried else ""
    for mode, found in result.modes.items():
        place = f"{EVALUATE}{name} ({questions.names[mode]})"
        if incomplete := found.episodes.incomplete:
            warn(
                "evaluate.episodes_incomplete",
                f"the number of {episodes} with a missing step, which no figure includes, should be 0",
                place=place,
                value=incomplete,
            )
        for reason, count in found.skipped.items():
            warn(
                "evaluate.prompts_skipped",
                f"the number of skipped prompts, which count as wrong, should be 0: {reason}",
                place=place,
                value=count,
            )
    if result.after_missing_step:
        warn(
            "evaluate.questions_after_missing_step",
            "the number of questions after a missing step, which are skipped, should be 0",
            place=f"{EVALUATE}{name}",
            value=result.after_missing_step,
        )
