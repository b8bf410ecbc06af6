"""The part of a report that shows several runs side by side."""

from collections.abc import Iterator, Mapping, Sequence

from toolkit.errors import DataError
from toolkit.evaluation.results import EvaluationResult
from toolkit.models.model_paths import public_name
from toolkit.recipe import changed_keys
from toolkit.reporting.blocks import Block, Plot, Plots, Section, Table, Text
from toolkit.reporting.curves import rewards_of, series_of
from toolkit.reporting.evaluated_rows import EvaluatedRows
from toolkit.reporting.figures import NOTHING, interval, points, value
from toolkit.reporting.finished_run import FinishedRun
from toolkit.reporting.plots import SERIES, ForestRow, Series, forest, lines
from toolkit.reporting.summaries import model_name, task_name, training_of
from toolkit.runfolder import read_state
from toolkit.scoring.statistics import compare

UNCHANGING = ("run.name", "run.folder", "run.purpose")
"""Keys that say nothing about the difference between two runs."""

TOO_MANY = "These are too many runs for paired differences and for the sections of each run."

Rows = Mapping[str, EvaluatedRows | None]
"""Name of a run -> its evaluated rows."""


def comparison_sections(runs: Sequence[FinishedRun], rows: Rows) -> list[Section]:
    """Return the runs beside each other: results, paired differences, curves and recipes."""
    found = [_results(runs, rows), _curves(runs), _recipes(runs)]
    return [section for section in found if section is not None]


def _results(runs: Sequence[FinishedRun], rows: Rows) -> Section:
    evaluated = {run.name: run.last for run in runs}
    table = Table.of(
        ("run", "task", "model", "training", "evaluation", "score", "value", "95 % interval", "n"),
        [_row(run, evaluated[run.name]) for run in runs],
        names=6,
    )
    blocks: list[Block] = [table]
    known = {name: one for name, one in evaluated.items() if one is not None}
    tasks = {run.name: task_name(run.recipe) if run.recipe else "" for run in runs}
    scores = {(one.score, one.split, tasks[name]) for name, (_, one) in known.items()}
    if len(known) > 1 and len(scores) == 1:
        ((score, split, _),) = scores
        bars = [ForestRow(name, one.primary.value) for name, (_, one) in known.items()]
        cells = [(row.label, value(row.estimate), interval(row.estimate), f"{row.estimate.n:,}") for row in bars]
        title = f"{score} of each run ({split})"
        plots = [Plot(title, forest(title, bars, "percent"), Table.of(("run", score, "", "n"), cells))]
        pairs, reasons = _differences(runs, rows) if rows else ([], [TOO_MANY])
        if pairs:
            listed = [(row.label, points(row.estimate), f"{row.estimate.n:,}") for row in pairs]
            title = f"paired differences to {runs[0].name}"
            drawing = forest(title, pairs, "percentage points", zero=True)
            plots.append(Plot(title, drawing, Table.of(("run", "points", "n"), listed)))
        blocks = [table, Plots(tuple(plots)), *(Text(reason) for reason in reasons)]
    elif len(known) > 1:
        blocks.append(Text("The runs have other tasks, scores or splits, so they are not plotted together."))
    return Section("compared", "Results of the runs", tuple(blocks))


def _row(run: FinishedRun, last: tuple[str, EvaluationResult] | None) -> tuple[str, ...]:
    about = (
        task_name(run.recipe) if run.recipe else NOTHING,
        model_name(run.recipe) or NOTHING,
        training_of(run.recipe) or NOTHING,
    )
    if last is None:
        return (run.name, *about, *[NOTHING] * 5)
    label, one = last
    found = one.primary.value
    return (run.name, *about, label, one.score, value(found), interval(found), f"{found.n:,}")


def _differences(runs: Sequence[FinishedRun], rows: Rows) -> tuple[list[ForestRow], list[str]]:
    """Return each run minus the first one, paired by question, and notes on runs and questions that are left out."""
    first, *others = runs
    found = [_difference(first, run, rows) for run in others]
    return [row for row, _ in found if row is not None], [note for _, note in found if note]


def _difference(first: FinishedRun, run: FinishedRun, rows: Rows) -> tuple[ForestRow | None, str]:
    before, after = rows[first.name], rows[run.name]
    reason = f"{run.name} is not compared with {first.name}"
    if _data(first) != _data(run):
        return None, f"{reason}: it has other data."
    if before is None or after is None or not before.samples or not after.samples or run.recipe is None:
        return None, f"{reason}: the data cannot be read."
    if after.task is None:
        return None, f"{reason}: the task cannot be read."
    section, seed = run.recipe.evaluation, run.recipe.run.seed
    scored = [list(one.scored(one.last).values()) for one in (before, after)]
    try:
        found = compare(scored[0], scored[1], after.task.primary, section.bootstrap, seed).paired.difference
    except DataError as error:
        return None, f"{reason}: {error.rule}."
    totals = [len(one) for one in scored]
    note = f"{run.name} has {totals[1]:,} questions and {first.name} has {totals[0]:,}. {found.n:,} are compared."
    return ForestRow(run.name, found), note if found.n < max(totals) else ""


def _data(run: FinishedRun) -> str | None:
    return read_state(run.folder).fingerprints.get("data")


def _curves(runs: Sequence[FinishedRun]) -> Section | None:
    plots = [plot for stage in _stages(runs) for plot in _stage_plots(stage, runs)]
    return Section("curves", "Training of the runs", (Plots(tuple(plots)),)) if plots else None


def _stages(runs: Sequence[FinishedRun]) -> list[str]:
    return list(dict.fromkeys(stage for run in runs for stage in run.metrics))


def _stage_plots(stage: str, runs: Sequence[FinishedRun]) -> Iterator[Plot]:
    logged = {run.name: run.metrics[stage] for run in runs if stage in run.metrics}
    names = dict.fromkeys(name for lines_of in logged.values() for name in rewards_of(lines_of))
    keys = {"loss": "loss", "total reward": "reward", **{f"reward {name}": f"rewards/{name}/mean" for name in names}}
    keys |= {"zero-variance groups": "reward/total/zero_variance", "truncated": "completions/clipped_ratio"}
    for title, key in keys.items():
        series = [one for name, found in logged.items() if (one := series_of(name, found, key)) is not None]
        if series:
            yield _plot(f"{stage}: {title}", series)


def _plot(title: str, series: Sequence[Series]) -> Plot:
    cells = [(one.label, f"{len(one.ys):,}", f"{one.ys[0]:.4g}", f"{one.ys[-1]:.4g}") for one in series]
    return Plot(title, lines(title, series[:SERIES]), Table.of(("run", "logged", "first", "last"), cells))


def _recipes(runs: Sequence[FinishedRun]) -> Section | None:
    """Return the keys in which a recipe differs from that of the first run."""
    first, *others = runs
    rows = []
    for run in others:
        if first.recipe is None or run.recipe is None:
            continue
        for key, (old, new) in changed_keys(first.recipe, run.recipe).items():
            if key not in UNCHANGING:
                rows.append((run.name, key, _public(old), _public(new)))
    if not rows:
        return Section("recipes", "Recipes of the runs", (Text("The recipes do not differ."),))
    head = ("run", "key", first.name, "this run")
    return Section("recipes", "Recipes of the runs", (Table.of(head, rows, "Differences to the first run", 2),))


def _public(found: object) -> str:
    """Return a value of a recipe without folders."""
    return NOTHING if found is None else public_name(found) if isinstance(found, str) else str(found)
