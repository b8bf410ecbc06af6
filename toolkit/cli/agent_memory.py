"""Tables that compare agent-memory modes: scores, first failures, and scores by column."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from toolkit.cli.figures import percent, points
from toolkit.evaluation.results import AgentMemoryResult
from toolkit.scoring.statistics import Estimate

OWN = "own"
"""The mode that is compared with the others. If it is missing, the first one is."""
MAX_POSITIONS = 10
"""Positions in an episode that get a column."""

Results = Mapping[str, AgentMemoryResult]
"""Label in the table of results -> its comparison of modes."""


def agent_memory_tables(results: Results) -> Iterator[Table]:
    """Yield the tables of these evaluations. There are none if the task has no agent memory."""
    if not results:
        return
    yield _modes(results)
    yield _failures(results)
    last = list(results)[-1]
    for column in next(iter(results[last].modes.values())).by:
        yield _by(last, column, results[last])


def _modes(results: Results) -> Table:
    """Return one row per metric and one column per mode, with the differences between modes."""
    names = {mode: found.name for result in results.values() for mode, found in result.modes.items()}
    first = OWN if OWN in names else next(iter(names))
    others = {other: None for result in results.values() for other in result.differences.get(first, {})}
    table = Table(title="agent-memory modes, 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    for title in ("n", *names.values(), *(f"{first} - {other}" for other in others)):
        table.add_column(title, justify="right", overflow="fold")
    for label, result in results.items():
        table.add_row(f"{label}:")
        for metric in result.metrics:
            found = {mode: one.metrics[metric] for mode, one in result.modes.items()}
            cells = [percent(found[mode]) if mode in found else "" for mode in names]
            cells += [points(result.differences.get(first, {}).get(other, {}).get(metric)) for other in others]
            n = max(estimate.n for estimate in found.values())
            table.add_row(f"  {metric}", f"{n:,}", *(cell.replace(" [", "\n[") for cell in cells))
        table.add_section()
    return table


def _failures(results: Results) -> Table:
    """Return the fraction of episodes without an error up to each position, and the mean first failure."""
    found = [one.episodes for result in results.values() for one in result.modes.values()]
    positions = sorted({position for one in found for position in one.survival})[:MAX_POSITIONS]
    name = next(iter(results.values())).metrics[1]
    table = Table(title=f"{name}: % without an error up to GUI step …, of those with that many")
    for title in ("", "mode"):
        table.add_column(title, overflow="fold")
    for title in (name, "mean first failure", *map(str, positions)):
        table.add_column(title, justify="right")
    for label, result in results.items():
        for number, mode in enumerate(result.modes.values()):
            episodes, mean = mode.episodes, mode.episodes.first_failure.value
            fractions = [_whole_percent(episodes.survival.get(position)) for position in positions]
            head = (label if number == 0 else "", mode.name, f"{episodes.n:,}")
            table.add_row(*head, "-" if mean is None else f"{mean:.1f}", *fractions)
        table.add_section()
    return table


def _by(label: str, column: str, result: AgentMemoryResult) -> Table:
    """Return the first metric for each value of a column, in every mode."""
    modes = list(result.modes.values())
    table = Table(title=f"{label}: {result.metrics[0]} by {column}, 95 % intervals in brackets")
    table.add_column(column, overflow="fold")
    for title in ("n", *(mode.name for mode in modes)):
        table.add_column(title, justify="right", overflow="fold")
    for value in modes[0].by[column]:
        found = [mode.by.get(column, {}).get(value) for mode in modes]
        n = max(estimate.n for estimate in found if estimate)
        table.add_row(value, f"{n:,}", *(percent(estimate) if estimate else "" for estimate in found))
    return table


def _whole_percent(estimate: Estimate | None) -> str:
    return "" if estimate is None or estimate.value is None else f"{100 * estimate.value:.0f}"
