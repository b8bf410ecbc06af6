"""Score an evaluation: every score with its interval, baselines and differences, and the agent-memory modes."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from toolkit.data.task import SetMetrics
from toolkit.errors import warn
from toolkit.evaluation.evaluation_predictions import PREDICTIONS, Baselines, Rows
from toolkit.evaluation.evaluation_set import OFF, OWN, REFERENCE, VALIDATION, EvaluationSet
from toolkit.evaluation.generate import SKIP_REMEDIES
from toolkit.evaluation.results import (
    BASELINE,
    BEFORE,
    AgentMemoryResult,
    BaselineResult,
    Difference,
    EvaluationResult,
    ModeResult,
    ProbabilityResult,
    ScoreResult,
    SetResult,
    evaluation_stage,
)
from toolkit.evaluation.stage_context import Context
from toolkit.scoring import statistics
from toolkit.scoring.statistics import (
    BEFORE_FAILURE,
    WHOLE,
    Estimate,
    ScoredAnswer,
    Summary,
    compare,
    compare_probabilities,
    disagreement,
    episode_metrics,
    find_scored_episodes,
    plot_confusion_matrix,
    probability_metrics,
    proportion,
    set_differences,
    set_estimates,
    summarise,
)

log = logging.getLogger(__name__)
CONFUSION = "confusion.png"

MAX_DIFFERENT = 0.05
"""Fraction of the answers that may differ from the most probable class without a warning."""

FRACTION_BEFORE_FAILURE = "fraction before the first failure"
COMPARED = (OWN, REFERENCE, OFF)
"""A mode is compared with the later ones. Own minus reference is the cost of errors, own minus off the benefit."""

Draws = tuple[int, int]
"""Resamples and seed of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Others:
    """What an evaluation is compared with.

    Attributes:
        baselines: the baselines.
        earlier: earlier evaluation -> mode -> its rows.
        validation: rows of the validation split with class probabilities, on which thresholds are chosen.
    """

    baselines: Baselines
    earlier: Mapping[str, Mapping[str, Rows]]
    validation: Rows


Measured = Mapping[str, Mapping[str, tuple[str, list[ScoredAnswer]]]]
"""Mode -> metric -> score and rows."""


def make_result(
    context: Context, name: str, evaluation_set: EvaluationSet, rows: Mapping[str, Rows], others: Others
) -> EvaluationResult:
    """Return the result of the evaluation ``name`` from the rows of each mode, and draw the confusion matrix."""
    recipe = context.recipe
    section, seed, main = recipe.evaluation, recipe.run.seed, rows[REFERENCE]
    summary = summarise(main, recipe.results_by, section.bootstrap, seed, positive=recipe.positive)
    if summary.confusion.labels:
        plot_confusion_matrix(
            summary.confusion, context.run.stage_folder(evaluation_stage(name)) / CONFUSION, f"{name}: completions"
        )
    tables = {
        label: _score_result(context, view)
        for label, view in _views(evaluation_set, rows, others).items()
        if any(row.scores[view.score] is not None for row in view.rows)
    }
    (score, primary), *also = tables.items()
    _warn(name, "", summary)
    _warn_about_probabilities(name, main)
    stage = evaluation_stage(name)
    comparison = _agent_memory(context, name, evaluation_set, rows, summary) if evaluation_set.agent_memory else None
    return EvaluationResult(
        split=section.split,
        score=score,
        primary=primary,
        also=dict(also),
        set_metrics=_set_results(context, evaluation_set, main, others),
        probabilities=_probabilities(context, evaluation_set, main, others),
        summary=summary,
        images=context.count_images(stage),
        predictions=f"stages/{stage}/{PREDICTIONS}",
        agent_memory=comparison,
    )


def compare_modes(
    evaluation_set: EvaluationSet,
    rows: Mapping[str, Sequence[ScoredAnswer]],
    summaries: Mapping[str, Summary],
    draws: Draws,
) -> AgentMemoryResult:
    """Return the result of all modes, and their differences on common samples."""
    task, positions, episodes = evaluation_set.task, evaluation_set.positions, _name_of_whole(evaluation_set)
    measured = {
        mode: {
            task.primary: (task.primary, list(found)),
            episodes: (
                WHOLE,
                whole := [one.scored_answer() for one in find_scored_episodes(found, positions, task.primary)[0]],
            ),
            FRACTION_BEFORE_FAILURE: (BEFORE_FAILURE, whole),
        }
        for mode, found in rows.items()
    }
    return AgentMemoryResult(
        metrics=(task.primary, episodes, FRACTION_BEFORE_FAILURE),
        modes={mode: _mode_result(evaluation_set, mode, found, summaries[mode], draws) for mode, found in rows.items()},
        differences={
            mode: _differences(mode, measured, draws) for mode in COMPARED[:-1] if mode in rows and len(measured) > 1
        },
        after_missing_step=len(evaluation_set.unreachable),
    )


def _agent_memory(
    context: Context, name: str, evaluation_set: EvaluationSet, rows: Mapping[str, Rows], reference: Summary
) -> AgentMemoryResult:
    """Return the comparison of the agent-memory modes. Warn about failures and skipped samples."""
    recipe = context.recipe
    by, draws = recipe.results_by, (recipe.evaluation.bootstrap, recipe.run.seed)
    summaries = {mode: summarise(found, by, *draws) for mode, found in rows.items() if mode != REFERENCE}
    for mode, found in summaries.items():
        _warn(name, f" ({evaluation_set.names[mode]})", found)
    result = compare_modes(evaluation_set, rows, {REFERENCE: reference, **summaries}, draws)
    _warn_about_skipped(name, evaluation_set, result)
    return result


@dataclass(frozen=True, slots=True)
class _View:
    """One table: a score of some rows, of the baselines on the same samples, and of earlier evaluations."""

    score: str
    rows: Rows
    baselines: Mapping[str, Rows]
    earlier: Mapping[str, Rows]


def _views(evaluation_set: EvaluationSet, rows: Mapping[str, Rows], others: Others) -> dict[str, _View]:
    """Return title -> table, with the primary score first.

    With agent memory there are also tables of the mode own and of whole episodes. The other modes are only in the
    comparison of the agent-memory modes.
    """
    task, baselines, before = evaluation_set.task, others.baselines, others.earlier
    shown = [mode for mode in (REFERENCE, OWN) if mode in rows]
    views: dict[str, _View] = {}
    for mode in shown:
        ids = {row.id for row in rows[mode]}
        same = {label: [row for row in of if row.id in ids] for label, of in baselines.rows.items()}
        earlier = {name: modes[mode] for name, modes in before.items() if mode in modes}
        views[_title(task.primary, evaluation_set, mode)] = _View(task.primary, rows[mode], same, earlier)
    if evaluation_set.agent_memory:
        steps = views[_title(task.primary, evaluation_set, shown[-1])]
        views[_title(evaluation_set.agent_memory.title, evaluation_set, shown[-1])] = _of_episodes(
            steps, evaluation_set
        )
    main = views[_title(task.primary, evaluation_set, REFERENCE)]
    custom = evaluation_set.custom_names(main.rows)
    for score in (*task.also, *custom):
        views[_title(score, evaluation_set, REFERENCE)] = _View(score, main.rows, baselines.of(score), main.earlier)
    return views


def _title(score: str, evaluation_set: EvaluationSet, mode: str) -> str:
    """Return the name of a score, with the agent-memory mode if there are several."""
    name = evaluation_set.names[mode]
    return f"{score} ({name})" if name else score


def _of_episodes(view: _View, evaluation_set: EvaluationSet) -> _View:
    positions = evaluation_set.positions

    def episodes(rows: Rows) -> Rows:
        return [episode.scored_answer() for episode in find_scored_episodes(rows, positions, view.score)[0]]

    return _View(
        WHOLE,
        episodes(view.rows),
        {label: episodes(rows) for label, rows in view.baselines.items()},
        {name: episodes(rows) for name, rows in view.earlier.items()},
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


def _set_results(context: Context, evaluation_set: EvaluationSet, rows: Rows, others: Others) -> dict[str, SetResult]:
    """Return the metrics of the whole set in the mode "reference", compared with the baseline and earlier ones."""
    metrics = evaluation_set.task.set_metrics
    rows = [row for row in rows if row.part is not None]
    if metrics is None or not rows:
        return {}
    draws = (context.recipe.evaluation.bootstrap, context.recipe.run.seed)
    earlier = {BASELINE: others.baselines.rows[BASELINE], **_earlier(others)}

    def estimates(of: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        return set_estimates([row.part for row in of], [row.group for row in of], metrics.values, *draws)

    changes = {name: _set_changes(metrics, other, rows, draws) for name, other in earlier.items()}
    majority = estimates([row for row in earlier[BASELINE] if row.part is not None])
    nothing = Estimate(None, 0, None, None, "none", 0)
    return {
        metric: SetResult(
            value,
            majority.get(metric, nothing),
            {name: found[metric] for name, found in changes.items() if metric in found},
        )
        for metric, value in estimates(rows).items()
    }


def whole_results(
    values: Mapping[str, float], baseline: Mapping[str, float], n: int, groups: int
) -> dict[str, SetResult]:
    """Return custom metrics of a whole set. They have no interval, because the function is called only once."""

    def estimate(value: float | None) -> Estimate:
        return Estimate(value, n, None, None, "none", groups)

    return {name: SetResult(estimate(value), estimate(baseline.get(name)), {}) for name, value in values.items()}


def _probabilities(
    context: Context, evaluation_set: EvaluationSet, rows: Rows, others: Others
) -> ProbabilityResult | None:
    """Return the metrics of class probabilities, compared with earlier evaluations. None: there are none."""
    choices, section = evaluation_set.task.choices, context.recipe.evaluation
    if choices is None:
        return None
    draws = statistics.Draws(section.bootstrap, context.recipe.run.seed)
    one_label = len(choices(evaluation_set.samples[0])) == 1
    chosen_on = (VALIDATION, others.validation) if others.validation else None
    found = probability_metrics(rows, one_label, draws, section.split, chosen_on)
    if found is None:
        return None
    return ProbabilityResult(
        found, {name: compare_probabilities(earlier, rows, draws) for name, earlier in _earlier(others).items()}
    )


def _earlier(others: Others) -> dict[str, Rows]:
    """Return earlier evaluation -> its rows in the mode "reference"."""
    return {name: modes[REFERENCE] for name, modes in others.earlier.items()}


def _set_changes(metrics: SetMetrics, before: Rows, after: Rows, draws: Draws) -> dict[str, Estimate]:
    """Return after minus before of each metric, on the common samples. Empty if there are none."""
    old = {row.id: row.part for row in before if row.part is not None}
    both = [row for row in after if row.id in old]
    if not both:
        return {}
    parts = [old[row.id] for row in both], [row.part for row in both]
    return set_differences(*parts, [row.group for row in both], metrics.values, *draws)


def _mean(rows: Sequence[ScoredAnswer], score: str, resamples: int, seed: int) -> Estimate:
    scored = [(row.scores[score], row.group) for row in rows if row.scores[score] is not None]
    return proportion(
        [value for value, _ in scored if value is not None], [group for _, group in scored], resamples, seed
    )


def _warn(name: str, mode: str, summary: Summary) -> None:
    overall, place = summary.overall, f"{evaluation_stage(name)}{mode}"
    raise_limit = "Raise evaluate.max_completion_tokens."
    read_them = f"Read their completions in {PREDICTIONS}, where `problem` has the reason."
    for code, rule, found, remedy in (
        ("evaluate.completions_truncated", "reach the token limit", overall.truncated, raise_limit),
        ("evaluate.completions_unreadable", "cannot be parsed", overall.unreadable, read_them),
    ):
        if not found.value:
            continue
        count = f"{round(found.value * found.n):,} of {found.n:,}"
        if name == BEFORE:
            log.info("%s: %s completions %s (the format is not trained yet)", place, count, rule)
        else:
            rule = f"the number of completions that {rule} should be 0"
            warn(code, rule, place=place, value=count, remedy=remedy)


def _warn_about_probabilities(name: str, rows: Rows) -> None:
    """Warn if the answers of a trained model often differ from its most probable classes."""
    different, n = disagreement(rows)
    if name != BEFORE and different > MAX_DIFFERENT * n:
        warn(
            "evaluate.probabilities_disagree",
            "the most probable class should be the class that the answer names",
            place=evaluation_stage(name),
            value=f"{different:,} of {n:,} parsed answers differ",
            remedy="Train longer, or choose class names of similar length. "
            "AUROC and calibration describe the probabilities, and accuracy the answers.",
        )


def _warn_about_skipped(name: str, evaluation_set: EvaluationSet, result: AgentMemoryResult) -> None:
    """Warn about incomplete episodes, skipped prompts, and samples that no rollout reaches."""
    episodes = evaluation_set.agent_memory.title if evaluation_set.agent_memory else ""
    for mode, found in result.modes.items():
        place = f"{evaluation_stage(name)} ({evaluation_set.names[mode]})"
        if incomplete := found.episodes.incomplete:
            warn(
                "evaluate.episodes_incomplete",
                f"the number of {episodes} with a missing step, which no figure includes, should be 0",
                place=place,
                value=incomplete,
                remedy="Add the rows of the missing steps.",
            )
        for reason, count in found.skipped.items():
            warn(
                "evaluate.prompts_skipped",
                f"the number of skipped prompts, which count as wrong, should be 0: {reason}",
                place=place,
                value=count,
                remedy=SKIP_REMEDIES[reason],
            )
    if result.after_missing_step:
        warn(
            "evaluate.questions_after_missing_step",
            "the number of questions after a missing step, which are skipped, should be 0",
            place=evaluation_stage(name),
            value=result.after_missing_step,
            remedy="Add the rows of the missing steps.",
        )


def _name_of_whole(evaluation_set: EvaluationSet) -> str:
    return evaluation_set.agent_memory.title if evaluation_set.agent_memory else WHOLE


def _mode_result(
    evaluation_set: EvaluationSet, mode: str, rows: Sequence[ScoredAnswer], summary: Summary, draws: Draws
) -> ModeResult:
    primary = evaluation_set.task.primary
    episodes = episode_metrics(rows, evaluation_set.positions, primary, *draws)
    return ModeResult(
        name=evaluation_set.names[mode],
        metrics={
            primary: summary.overall.scores[primary],
            _name_of_whole(evaluation_set): episodes.whole,
            FRACTION_BEFORE_FAILURE: episodes.before_failure,
        },
        episodes=episodes,
        by={
            column: {value: part.scores[primary] for value, part in values.items()}
            for column, values in summary.by.items()
        },
        skipped=dict(Counter(row.problem for row in rows if row.problem and row.problem in SKIP_REMEDIES)),
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
