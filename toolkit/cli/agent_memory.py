"""Tables that compare agent-memory modes: scores, first failures, and scores by column."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from toolkit.cli.figures import percent, points

OWN = "own"
"""The mode that is compared with the others. If it is missing, the first one is."""
MAX_POSITIONS = 10
"""Positions in an episode that get a column."""

Records = Mapping[str, Mapping[str, Any]]
"""Label in the table of results -> ``agent_memory`` of its record."""


def agent_memory_tables(records: Records) -> Iterator[Table]:
    """Yield the tables of these evaluations. There are none if the task has no agent memory."""
    if not records:
        return
    yield _modes(records)
    yield _failures(records)
    last = list(records)[-1]
    for column in next(iter(records[last]["ways"].values()))["by"]:
        yield _by(last, column, records[last])


def _modes(records: Records) -> Table:
    """Return one row per measure and one column per mode, with the differences between modes."""
    names = {mode: found["name"] for record in records.values() for mode, found in record["ways"].items()}
    first = OWN if OWN in names else next(iter(names))
    others = {other: None for record in records.values() for other in record["differences"].get(first, {})}
    table = Table(title="agent-memory modes, 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    for title in ("n", *names.values(), *(f"{first} - {other}" for other in others)):
        table.add_column(title, justify="right", overflow="fold")
    for label, record in records.items():
        table.add_row(f"{label}:")
        for measure in record["measures"]:
            found = {mode: of["measures"][measure] for mode, of in record["ways"].items()}
            cells = [percent(found[mode]) if mode in found else "" for mode in names]
            cells += [points(record["differences"].get(first, {}).get(other, {}).get(measure)) for other in others]
            n = max(estimate["n"] for estimate in found.values())
            table.add_row(f"  {measure}", f"{n:,}", *(cell.replace(" [", "\n[") for cell in cells))
        table.add_section()
    return table


def _failures(records: Records) -> Table:
    """Return the fraction of episodes without an error up to each position, and the mean first failure."""
    survival = {
        (label, mode): {int(position): of for position, of in found["chains"]["survival"].items()}
        for label, record in records.items()
        for mode, found in record["ways"].items()
    }
    positions = sorted({position for found in survival.values() for position in found})[:MAX_POSITIONS]
    episodes = next(iter(records.values()))["measures"][1]
    table = Table(title=f"{episodes}: % without an error up to GUI step …, of those with that many")
    for title in ("", "mode"):
        table.add_column(title, overflow="fold")
    for title in (episodes, "mean first failure", *map(str, positions)):
        table.add_column(title, justify="right")
    for label, record in records.items():
        for number, (mode, found) in enumerate(record["ways"].items()):
            chains, mean = found["chains"], found["chains"]["first_failure"]["value"]
            fractions = [_whole_percent(survival[label, mode].get(position)) for position in positions]
            head = (label if number == 0 else "", found["name"], f"{chains['n']:,}")
            table.add_row(*head, "-" if mean is None else f"{mean:.1f}", *fractions)
        table.add_section()
    return table


def _by(label: str, column: str, record: Mapping[str, Any]) -> Table:
    """Return the first measure for each value of a column, in every mode."""
    measure, modes = record["measures"][0], record["ways"]
    table = Table(title=f"{label}: {measure} by {column}, 95 % intervals in brackets")
    table.add_column(column, overflow="fold")
    for title in ("n", *(found["name"] for found in modes.values())):
        table.add_column(title, justify="right", overflow="fold")
    for value in next(iter(modes.values()))["by"][column]:
        found = [of["by"].get(column, {}).get(value) for of in modes.values()]
        n = max(estimate["n"] for estimate in found if estimate)
        table.add_row(value, f"{n:,}", *(percent(estimate) if estimate else "" for estimate in found))
    return table


def _whole_percent(estimate: Mapping[str, Any] | None) -> str:
    return "" if estimate is None or estimate["value"] is None else f"{100 * estimate['value']:.0f}"
