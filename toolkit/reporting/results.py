"""The section of results: every score with its interval, n and baselines, and the paired differences."""

from collections.abc import Iterator, Mapping

from toolkit.evaluation.results import BASELINE, LABELS, EvaluationResult, ScoreResult
from toolkit.reporting.blocks import Block, Plot, Plots, Section, Table, Text
from toolkit.reporting.figures import NOTHING, difference, interval, points, value
from toolkit.reporting.finished_run import FinishedRun
from toolkit.reporting.plots import ForestRow, forest
from toolkit.scoring.statistics import Estimate

MAJORITY = "majority baseline"


def results_section(run: FinishedRun) -> Section | None:
    """Return the scores of the evaluations, and the difference of each to those before it. None: there are none."""
    if not run.evaluations:
        return None
    found = run.evaluations
    last = list(found.values())[-1]
    scores = [last.score, *(name for name in last.also if all(name in one.scores for one in found.values()))]
    plots = [plot for score in scores for plot in _plots(score, _of_score(found, score))]
    tables = [_table(score, _of_score(found, score)) for score in scores]
    about = Text(
        f"Split: {last.split}. Intervals have 95 % confidence. Differences are paired by question, in points. "
        "A difference is clear if its interval excludes 0 and McNemar's test, if there is one, agrees. No correction "
        "for several comparisons is made."
    )
    rest: list[Block] = [table for table in (_set_metrics(found), _quality(found)) if table is not None]
    return Section("results", "Results", (about, Plots(tuple(plots)), *tables, *rest))


def others_section(run: FinishedRun) -> Section | None:
    """Return the scores of further evaluations, such as those of exports. None: there are none."""
    if not run.others:
        return None
    rows = [
        (name, one.score, value(one.primary.value), interval(one.primary.value), f"{one.primary.value.n:,}")
        for name, one in run.others.items()
    ]
    head = ("evaluation", "score", "value", "95 % interval", "n")
    return Section("others", "Further evaluations", (Table.of(head, rows, names=2),))


def _of_score(found: Mapping[str, EvaluationResult], score: str) -> dict[str, ScoreResult]:
    """Return label -> result of one score. The primary score has another name in each agent-memory mode."""
    return {label: one.also.get(score, one.primary) for label, one in found.items()}


def _plots(score: str, found: Mapping[str, ScoreResult]) -> Iterator[Plot]:
    last = list(found.values())[-1]
    rows = [ForestRow(MAJORITY, last.baseline, quiet=True)]
    rows += [ForestRow(label, one.value, quiet=True) for label, one in last.baselines.items()]
    rows += [ForestRow(label, one.value) for label, one in found.items()]
    figures = [(row.label, value(row.estimate), interval(row.estimate), f"{row.estimate.n:,}") for row in rows]
    table = Table.of(("row", "value", "95 % interval", "n"), figures)
    yield Plot(score, forest(f"{score}: value and 95 % interval", rows, "percent"), table)
    pairs = [
        ForestRow(f"{label} – {_shown(other)}", change.difference)
        for label, one in found.items()
        for other, change in one.differences.items()
    ]
    if pairs:
        cells = [(row.label, points(row.estimate), f"{row.estimate.n:,}") for row in pairs]
        drawing = forest(f"{score}: paired differences", pairs, "percentage points", zero=True)
        yield Plot(f"{score}: differences", drawing, Table.of(("difference", "points", "n"), cells))


def _shown(name: str) -> str:
    return "baseline" if name == BASELINE else LABELS.get(name, name)


def _table(score: str, found: Mapping[str, ScoreResult]) -> Table:
    last = list(found.values())[-1]
    rows = [(MAJORITY, value(last.baseline), interval(last.baseline), f"{last.baseline.n:,}", NOTHING, NOTHING)]
    for label, one in last.baselines.items():
        to_baseline = difference(one.differences.get(BASELINE))
        rows.append((label, value(one.value), interval(one.value), f"{one.value.n:,}", NOTHING, to_baseline))
    for label, result in found.items():
        earlier = [change for name, change in result.differences.items() if LABELS.get(name) in found]
        previous = difference(earlier[-1] if earlier else None)
        to_baseline = difference(result.differences.get(BASELINE))
        cells = (value(result.value), interval(result.value), f"{result.value.n:,}", previous, to_baseline)
        rows.append((label, *cells))
    return Table.of(("", score, "95 % interval", "n", "to the row before", "to the baseline"), rows)


def _set_metrics(found: Mapping[str, EvaluationResult]) -> Table | None:
    """Return metrics of the whole set, such as mAP. None: the task has none."""
    rows = [
        (metric, label, value(one.value), interval(one.value), f"{one.value.n:,}", value(one.baseline))
        for label, result in found.items()
        for metric, one in result.set_metrics.items()
    ]
    head = ("metric", "evaluation", "value", "95 % interval", "n", "baseline")
    return Table.of(head, sorted(rows, key=lambda row: row[0]), "Metrics of the whole set", 2) if rows else None


def _quality(found: Mapping[str, EvaluationResult]) -> Table:
    """Return further scores of the task, and the fractions of unreadable and truncated completions."""
    figures: dict[str, dict[str, Estimate]] = {}
    for label, result in found.items():
        overall = result.summary.overall
        macro = {} if overall.macro_f1 is None else {"macro F1": overall.macro_f1}
        others = {name: one for name, one in overall.scores.items() if name not in result.scores}
        for name, one in {**macro, **others, "unreadable": overall.unreadable, "truncated": overall.truncated}.items():
            if one.n:
                figures.setdefault(name, {})[label] = one
    rows = []
    for name, of in figures.items():
        cells = [f"{value(of[label])} ({interval(of[label])})" if label in of else NOTHING for label in found]
        rows.append((name, *cells, " / ".join(dict.fromkeys(f"{one.n:,}" for one in of.values()))))
    return Table.of(("figure", *found, "n"), rows, "Further figures")
