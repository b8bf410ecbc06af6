"""The results of the model card: the tables of the run, and the subgroups of evaluate.by."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.exporting.card.facts import CardFacts
from toolkit.exporting.card.markdown import cell, table

MIN_GROUPS = 5
"""Smallest number of patients (lesions, images) of a subgroup. A smaller one is hidden, because its intervals are wide
and it might identify a patient."""


def results(facts: CardFacts) -> str:
    """Return the tables of all scores with intervals and baselines, and which row is that of these weights."""
    rows = facts.results.get("rows", [])
    if not rows:
        return "## Results\n\nNone: nothing was evaluated."
    title = f"Held-out split `{facts.results['split']}`, 95 % intervals in brackets."
    tables = {facts.results["score"]: rows, **facts.results["also"]}
    parts = ["## Results", title, *(_table(score, lines) for score, lines in tables.items()), *_reading(facts)]
    return "\n\n".join(parts)


def subgroups(facts: CardFacts) -> str:
    """Return the scores of these weights by the columns of evaluate.by, or an empty string."""
    columns = _columns(facts)
    if not columns:
        return ""
    head = "Scores of these weights by column. `not given`: rows without a value."
    parts = ["## Subgroups", head]
    for name, values in columns.items():
        shown = {value: found for value, found in values.items() if found["groups"] >= MIN_GROUPS}
        if shown:
            scores = list(dict.fromkeys(score for found in shown.values() for score in found["scores"]))
            lines = [
                [value, f"{found['n']:,}", *(_score(found, score) for score in scores)]
                for value, found in shown.items()
            ]
            parts.append(table([name, "n", *scores], lines))
        if hidden := len(values) - len(shown):
            parts.append(
                f"{cell(name)}: {hidden:,} values with fewer than {MIN_GROUPS} patients, lesions or images are hidden."
            )
    return "\n\n".join(parts)


def points(paired: Mapping[str, Any] | None) -> str:
    """Return a paired difference in percentage points with its interval, or an empty string."""
    found = None if paired is None else paired["difference"]
    if found is None or found["value"] is None:
        return ""
    low, high = found["low"], found["high"]
    interval = "no interval" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * found['value']:+.1f} [{interval}]"


def percent(found: Mapping[str, Any]) -> str:
    """Return an estimate in percent with its interval, or "-" if it has no value."""
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
    """Return how to read the table: which row is that of these weights, and whether it beats the baseline."""
    found = facts.evaluation
    if found is None:
        return ["No row is that of these weights: they were not evaluated."]
    lines = ["The last row is that of these weights." if _is_last(facts) else "These weights are not the last row's."]
    beside = found["differences"].get("baseline")
    if beside is not None and not (beside["clear"] and beside["difference"]["value"] > 0):
        lines.append("**These weights were not shown to be better than the majority baseline**, which sees no image.")
    rates = found["summary"]["overall"]
    failures = [("could not be parsed", rates["unreadable"]), ("reached the token limit", rates["truncated"])]
    lines += [
        f"{percent(rate)} of the completions {what} and count as wrong." for what, rate in failures if rate["value"]
    ]
    return lines


def _is_last(facts: CardFacts) -> bool:
    return facts.evaluation is not None and facts.results["rows"][-1]["estimate"] == facts.evaluation["value"]


def _columns(facts: CardFacts) -> Mapping[str, Mapping[str, Any]]:
    """Return column -> value -> figures, without the column of the patients."""
    by = facts.evaluation["summary"]["by"] if facts.evaluation else {}
    return {name: values for name, values in by.items() if name != facts.recipe.dataset.group}


def _score(found: Mapping[str, Any], score: str) -> str:
    return percent(found["scores"][score]) if score in found["scores"] else "-"
