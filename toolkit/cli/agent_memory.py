"""Tables of what memory does: ways of asking beside each other, where whole tasks fail first, figures by column."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from toolkit.cli.figures import percent, points

OWN = "own"
"""The way of asking that is set against the others; where it is lacking, the first one is."""
MOST_PLACES = 10
"""Places of a chain that get a column."""

Records = Mapping[str, Mapping[str, Any]]
"""Line of the table of results -> ``agent_memory`` of its record."""


def memory_tables(records: Records) -> Iterator[Table]:
    """The tables of these lines; none where answers carry no memory."""
    if not records:
        return
    yield _ways(records)
    yield _failures(records)
    last = list(records)[-1]
    for column in next(iter(records[last]["ways"].values()))["by"]:
        yield _by(last, column, records[last])


def _ways(records: Records) -> Table:
    """One line a measure, one column a way of asking, and how far one is above the others."""
    names = {way: found["name"] for record in records.values() for way, found in record["ways"].items()}
    first = OWN if OWN in names else next(iter(names))
    others = {other: None for record in records.values() for other in record["differences"].get(first, {})}
    table = Table(title="what memory does, 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    for title in ("n", *names.values(), *(f"{first} to {other}" for other in others)):
        table.add_column(title, justify="right", overflow="fold")
    for label, record in records.items():
        table.add_row(f"{label}:")
        for measure in record["measures"]:
            found = {way: of["measures"][measure] for way, of in record["ways"].items()}
            cells = [percent(found[way]) if way in found else "" for way in names]
            cells += [points(record["differences"].get(first, {}).get(other, {}).get(measure)) for other in others]
            n = max(estimate["n"] for estimate in found.values())
            table.add_row(f"  {measure}", f"{n:,}", *(cell.replace(" [", "\n[") for cell in cells))
        table.add_section()
    return table


def _failures(records: Records) -> Table:
    """Which share of the chains is right up to each place, and where those that fail do so first, on average."""
    survival = {
        (label, way): {int(place): of for place, of in found["chains"]["survival"].items()}
        for label, record in records.items()
        for way, found in record["ways"].items()
    }
    places = sorted({place for found in survival.values() for place in found})[:MOST_PLACES]
    chains = next(iter(records.values()))["measures"][1]
    table = Table(title=f"{chains}: % that are right up to step …, of those that have so many steps")
    for title in ("", "asked with"):
        table.add_column(title, overflow="fold")
    for title in (chains, "mean first failure", *map(str, places)):
        table.add_column(title, justify="right")
    for label, record in records.items():
        for number, (way, found) in enumerate(record["ways"].items()):
            chain, mean = found["chains"], found["chains"]["first_failure"]["value"]
            shares = [_share(survival[label, way].get(place)) for place in places]
            head = (label if number == 0 else "", found["name"], f"{chain['n']:,}")
            table.add_row(*head, "-" if mean is None else f"{mean:.1f}", *shares)
        table.add_section()
    return table


def _by(label: str, column: str, record: Mapping[str, Any]) -> Table:
    """The first measure for each value of a column, in every way of asking."""
    measure, ways = record["measures"][0], record["ways"]
    table = Table(title=f"{label}: {measure} by {column}, 95 % intervals in brackets")
    table.add_column(column, overflow="fold")
    for title in ("n", *(found["name"] for found in ways.values())):
        table.add_column(title, justify="right", overflow="fold")
    for value in next(iter(ways.values()))["by"][column]:
        found = [of["by"].get(column, {}).get(value) for of in ways.values()]
        n = max(estimate["n"] for estimate in found if estimate)
        table.add_row(value, f"{n:,}", *(percent(estimate) if estimate else "" for estimate in found))
    return table


def _share(estimate: Mapping[str, Any] | None) -> str:
    return "" if estimate is None or estimate["value"] is None else f"{100 * estimate['value']:.0f}"
