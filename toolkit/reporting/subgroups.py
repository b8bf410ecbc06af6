"""The section of subgroups: the primary score by the columns of ``evaluate.by``."""

from collections.abc import Mapping

from toolkit.reporting.blocks import Plot, Plots, Section, Table, Text
from toolkit.reporting.figures import interval, value
from toolkit.reporting.finished_run import FinishedRun
from toolkit.reporting.plots import ForestRow, forest
from toolkit.scoring.statistics import Metrics
from toolkit.tasks import TASKS

MAX_ROWS = 24
"""Values of a column in a plot. The table has all of them."""

MIN_GROUPS = 5
"""Least number of patients (lesions, images) of a subgroup in a report without rows."""

SMALL = 30
"""A subgroup with fewer answers is marked as small."""


def subgroups_section(run: FinishedRun, *, hide_small: bool = False) -> Section | None:
    """Return the primary score of the last evaluation for each value of each column. None: there are no columns.

    Args:
        run: the run.
        hide_small: leave out subgroups of fewer than ``MIN_GROUPS`` patients, which might identify one.
    """
    if run.last is None or run.recipe is None or not run.last[1].summary.by:
        return None
    label, last = run.last
    score = TASKS[run.recipe.dataset.task].primary
    least = MIN_GROUPS if hide_small else 0
    plots = [
        plot
        for column, parts in last.summary.by.items()
        if (plot := _plot(column, score, {name: one for name, one in parts.items() if one.groups >= least})) is not None
    ]
    if not plots:
        return None
    about = Text(
        f"{score} of {label}, by column. Subgroups with n below {SMALL} are marked with *. Intervals have 95 % "
        "confidence, without correction for several subgroups."
        + (f" Subgroups of fewer than {MIN_GROUPS} patients, lesions or images are left out." if hide_small else "")
    )
    return Section("subgroups", "Subgroups", (about, Plots(tuple(plots))))


def _plot(column: str, score: str, parts: Mapping[str, Metrics]) -> Plot | None:
    rows = [
        ForestRow(name + ("*" if one.scores[score].n < SMALL else ""), one.scores[score])
        for name, one in parts.items()
        if score in one.scores
    ]
    if not rows:
        return None
    groups = {name: one.groups for name, one in parts.items()}
    cells = [
        (name, value(one.scores[score]), interval(one.scores[score]), f"{one.scores[score].n:,}", f"{groups[name]:,}")
        for name, one in parts.items()
        if score in one.scores
    ]
    title = f"{score} by {column}" + (f", first {MAX_ROWS} of {len(rows)} values" if len(rows) > MAX_ROWS else "")
    table = Table.of((column, score, "95 % interval", "n", "groups"), cells)
    return Plot(title, forest(title, rows[:MAX_ROWS], "percent"), table)
