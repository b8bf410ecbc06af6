"""The record of an evaluation: every score with its interval, beside the baselines and the earlier evaluations."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import warn
from toolkit.evaluation.agent_memory_modes import memory_record
from toolkit.evaluation.context import Context, EvaluationRecord, ScoreRecord
from toolkit.evaluation.generate_answers import PREDICTIONS
from toolkit.evaluation.prompts import OWN, REFERENCE, Questions
from toolkit.evaluation.scored import BASELINE, Baselines, Rows
from toolkit.runfolder import Record
from toolkit.scoring.statistics import (
    WHOLE,
    Comparison,
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
"""The baselines, and earlier evaluation -> way -> its rows."""


def make_record(
    context: Context, name: str, questions: Questions, rows: Mapping[str, Rows], others: Others
) -> EvaluationRecord:
    """What the evaluation ``name`` leaves, from the rows of each way; draws the confusion picture."""
    recipe = context.recipe
    section, seed, main = recipe.evaluation, recipe.run.seed, rows[REFERENCE]
    summary = summarise(main, recipe.results_by, section.bootstrap, seed, positive=recipe.positive)
    if summary.confusion.labels:
        plot_confusion_matrix(
            summary.confusion, context.run.stage_folder(f"evaluate-{name}") / CONFUSION, f"{name}: answers"
        )
    tables = {
        label: _score_record(context, view)
        for label, view in _views(questions, rows, others).items()
        if any(row.scores[view.score] is not None for row in view.rows)
    }
    (primary, first), *also = tables.items()
    record: EvaluationRecord = {
        "split": section.split,
        "score": primary,
        "value": first["value"],
        "baseline": first["baseline"],
        "differences": first["differences"],
        "also": dict(also),
        "summary": summary.to_dict(),
        "pictures": context.count_pictures(f"evaluate-{name}"),
        "predictions": f"stages/evaluate-{name}/{PREDICTIONS}",
    }
    _warn(name, "", summary)
    if questions.carried:
        record["baselines"] = first["baselines"]
        record["memory"] = _memory(context, name, questions, rows, summary)
    return record


def _memory(context: Context, name: str, questions: Questions, rows: Mapping[str, Rows], reference: Summary) -> Record:
    """The record of the ways of asking; what is wrong with their answers, and what they leave out, is told."""
    recipe = context.recipe
    by, draws = recipe.results_by, (recipe.evaluation.bootstrap, recipe.run.seed)
    summaries = {way: summarise(found, by, *draws) for way, found in rows.items() if way != REFERENCE}
    for way, found in summaries.items():
        _warn(name, f" ({questions.names[way]})", found)
    record = memory_record(questions, rows, {REFERENCE: reference, **summaries}, draws)
    _tell_left_out(name, questions, record)
    return record


@dataclass(frozen=True, slots=True)
class _View:
    """One table: a score of some rows, of the baselines on the same questions, and of earlier evaluations."""

    score: str
    rows: Rows
    baselines: Mapping[str, Rows]
    earlier: Mapping[str, Rows]


def _views(questions: Questions, rows: Mapping[str, Rows], others: Others) -> dict[str, _View]:
    """Title -> table: the primary score first; with the model's own memory too, and the chains with that, if asked.

    What the other ways give stands in the record of memory, beside these.
    """
    task, (baselines, before) = questions.task, others
    shown = [way for way in (REFERENCE, OWN) if way in rows]
    views: dict[str, _View] = {}
    for way in shown:
        ids = {row.id for row in rows[way]}
        same = {label: [row for row in of if row.id in ids] for label, of in baselines.rows.items()}
        earlier = {name: ways[way] for name, ways in before.items() if way in ways}
        views[_title(task.primary, questions, way)] = _View(task.primary, rows[way], same, earlier)
    if questions.carried:
        steps = views[_title(task.primary, questions, shown[-1])]
        views[_title(questions.carried.chains, questions, shown[-1])] = _of_chains(steps, questions)
    main = views[_title(task.primary, questions, REFERENCE)]
    for score in task.also:
        views[_title(score, questions, REFERENCE)] = _View(score, main.rows, baselines.of(score), main.earlier)
    return views


def _title(score: str, questions: Questions, way: str) -> str:
    """A score's name, with the way of asking where there are several."""
    name = questions.names[way]
    return f"{score} ({name})" if name else score


def _of_chains(view: _View, questions: Questions) -> _View:
    stands = questions.stands

    def chains(rows: Rows) -> Rows:
        return [chain.scored_answer() for chain in find_scored_episodes(rows, stands, view.score)[0]]

    return _View(
        WHOLE,
        chains(view.rows),
        {label: chains(rows) for label, rows in view.baselines.items()},
        {name: chains(rows) for name, rows in view.earlier.items()},
    )


def _score_record(context: Context, view: _View) -> ScoreRecord:
    draws = (context.recipe.evaluation.bootstrap, context.recipe.run.seed)

    def minus(rows: Rows, other: Rows) -> Record:
        return _paired(compare(other, rows, view.score, *draws))

    majority = view.baselines[BASELINE]
    record: ScoreRecord = {
        "value": asdict(_proportion(view.rows, view.score, *draws)),
        "baseline": asdict(_proportion(majority, view.score, *draws)),
        "differences": {
            other: minus(view.rows, rows) for other, rows in {**view.baselines, **view.earlier}.items() if rows
        },
    }
    further = {label: rows for label, rows in view.baselines.items() if label != BASELINE}
    if further:
        record["baselines"] = {
            label: {
                "value": asdict(_proportion(rows, view.score, *draws)),
                "differences": {BASELINE: minus(rows, majority)},
            }
            for label, rows in further.items()
        }
    return record


def _paired(found: Comparison) -> Record:
    return {
        **asdict(found.paired),
        "clear": found.paired.clear,
        "only_before": found.only_before,
        "only_after": found.only_after,
    }


def _proportion(rows: Sequence[ScoredAnswer], score: str, resamples: int, seed: int) -> Any:
    judged = [(row.scores[score], row.group) for row in rows if row.scores[score] is not None]
    return proportion(
        [value for value, _ in judged if value is not None], [group for _, group in judged], resamples, seed
    )


def _warn(name: str, way: str, summary: Summary) -> None:
    overall, place = summary.overall, f"evaluate-{name}{way}"
    for code, rule, value in (
        ("evaluate.completions_truncated", "reach the token limit", overall.truncated.value),
        ("evaluate.completions_unreadable", "cannot be parsed", overall.unreadable.value),
    ):
        if value and name == "before":
            log.info("%s: %.0f%% of the completions %s (the format is not trained yet)", place, 100 * value, rule)
        elif value:
            rule = f"the fraction of completions that {rule} should be 0"
            warn(code, rule, place=place, value=round(value, 3))


def _tell_left_out(name: str, questions: Questions, record: Record) -> None:
    """What stands in no figure of whole chains, what was not asked, and what no rollout reaches."""
    chains = questions.carried.chains if questions.carried else ""
    for way, found in record["ways"].items():
        place = f"evaluate-{name} ({questions.names[way]})"
        if incomplete := found["chains"]["incomplete"]:
            warn(
                "evaluate.chains_incomplete",
                f"the number of {chains} with a missing step, which no figure includes, should be 0",
                place=place,
                value=incomplete,
            )
        for reason, count in found["unasked"].items():
            warn(
                "evaluate.prompts_skipped",
                f"the number of skipped prompts, which count as wrong, should be 0: {reason}",
                place=place,
                value=count,
            )
    if behind := record["behind"]:
        warn(
            "evaluate.questions_after_missing_step",
            "the number of questions after a missing step, which are skipped, should be 0",
            place=f"evaluate-{name}",
            value=behind,
        )
