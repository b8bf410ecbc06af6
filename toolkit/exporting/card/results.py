"""The card's results: every row of the run's table, and the subgroups that were asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.markdown import cell, table

FEWEST = 5
"""A subgroup of fewer patients (lesions, films) is not shown: its figures would say little, and might say who."""


def results(facts: CardFacts) -> str:
    """The tables of all scores with intervals and baselines, and which row is that of these weights."""
    rows = facts.results.get("table", [])
    if not rows:
        return "## Results\n\nNone: no held-out question was asked."
    title = f"Held-out questions of the split `{facts.results['split']}`; 95 % intervals in brackets."
    tables = {facts.results["score"]: rows, **facts.results["also"]}
    parts = ["## Results", title, *(_table(score, lines) for score, lines in tables.items()), *_reading(facts)]
    return "\n\n".join(parts)


def subgroups(facts: CardFacts) -> str:
    """The scores of these weights by the columns of evaluate.by; empty where there are none."""
    columns = _columns(facts)
    if not columns:
        return ""
    head = "Scores of these weights by column; `not given` stands for rows without a value."
    parts = ["## Subgroups", head]
    for name, values in columns.items():
        shown = {value: found for value, found in values.items() if found["groups"] >= FEWEST}
        if shown:
            scores = list(dict.fromkeys(score for found in shown.values() for score in found["scores"]))
            lines = [
                [value, f"{found['n']:,}", *(_score(found, score) for score in scores)]
                for value, found in shown.items()
            ]
            parts.append(table([name, "n", *scores], lines))
        if hidden := len(values) - len(shown):
            parts.append(
                f"{cell(name)}: {hidden:,} values with fewer than {FEWEST} patients, lesions or films are not shown."
            )
    return "\n\n".join(parts)


def points(paired: Mapping[str, Any] | None) -> str:
    """A paired difference in percentage points with its interval; empty where there is none."""
    found = None if paired is None else paired["difference"]
    if found is None or found["value"] is None:
        return ""
    low, high = found["low"], found["high"]
    interval = "no interval" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * found['value']:+.1f} [{interval}]"


def percent(found: Mapping[str, Any]) -> str:
    """An Estimate's value with its interval; "-" where there is none."""
    if found["value"] is None:
        return "-"
    low, high = found["low"], found["high"]
    interval = "no interval" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{100 * found['value']:.1f} % [{interval}]"


def _table(score: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["label"],
            f"{row['estimate']['n']:,}",
            percent(row["estimate"]),
            points(row["to_previous"]),
            points(row["to_baseline"]),
        ]
        for row in rows
    ]
    return table(["", "n", score, "to the row above, points", "to the majority baseline, points"], lines)


def _reading(facts: CardFacts) -> list[str]:
    """What a reader of the table must know: which row counts, and whether it beats the baseline."""
    found = facts.evaluation
    if found is None:
        return ["No row is that of these weights: they were not evaluated."]
    lines = ["The last row is that of these weights." if _is_last(facts) else "These weights are not the last row's."]
    beside = found["differences"].get("baseline")
    if beside is not None and not (beside["clear"] and beside["difference"]["value"] > 0):
        lines.append("**These weights were not shown to be better than the majority baseline**, which sees no picture.")
    rates = found["summary"]["overall"]
    told = [("could not be read", rates["unreadable"]), ("ran into the token limit", rates["truncated"])]
    lines += [f"{percent(rate)} of the answers {what}; they count as wrong." for what, rate in told if rate["value"]]
    return lines


def _is_last(facts: CardFacts) -> bool:
    return facts.evaluation is not None and facts.results["table"][-1]["estimate"] == facts.evaluation["value"]


def _columns(facts: CardFacts) -> Mapping[str, Mapping[str, Any]]:
    """Column -> value -> figures; the column of patients themselves is no subgroup."""
    by = facts.evaluation["summary"]["by"] if facts.evaluation else {}
    return {name: values for name, values in by.items() if name != facts.recipe.dataset.group}


def _score(found: Mapping[str, Any], score: str) -> str:
    return percent(found["scores"][score]) if score in found["scores"] else "-"
