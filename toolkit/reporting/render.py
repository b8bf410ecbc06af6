"""The ledger as Markdown and as JSON: no name of a machine or user, no path; what is not known is said, never 0."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.reporting import tables
from toolkit.reporting.figures import figures, per_thousand, shares
from toolkit.reporting.ledger import Ledger, RunUse
from toolkit.reporting.machines import accuracy, machines, versions_of
from toolkit.reporting.setup import model_name, task_name, training_of
from toolkit.runfolder import hide_secrets, write_json, write_text
from toolkit.runfolder.usage import UNKNOWN


def write_report(ledger: Ledger, file: Path) -> None:
    """Write ``file``, Markdown or JSON by its ending, by a rename.

    Raises:
        RunError: it ends otherwise.
    """
    if file.suffix == ".json":
        write_json(file, as_json(ledger))
    elif file.suffix == ".md":
        write_text(file, as_markdown(ledger))
    else:
        rule, remedy = "the report file must end in .md or .json", "Choose another file name."
        raise RunError("run.report_format_unknown", rule, place="--out", value=str(file), remedy=remedy)


def as_markdown(ledger: Ledger) -> str:
    """The report for a reader."""
    parts = [
        "# Compute report",
        *_warnings(ledger),
        "## By purpose",
        tables.purposes(ledger),
        "## Runs",
        tables.runs(ledger),
        "## Cost of 1,000 predictions",
        tables.costs(ledger),
        "## Tokens, pictures, FLOPs",
        tables.work(ledger),
        "## Stages",
        tables.stages(ledger),
        "## Hardware",
        *_bullets(machines(ledger.starts)),
        "## Energy",
        *_bullets(accuracy(ledger.starts)),
        "## Versions",
        *_bullets(versions_of(ledger.starts)),
        "## How to read it",
        *tables.NOTES,
    ]
    return hide_secrets("\n\n".join(part for part in parts if part) + "\n")


def as_json(ledger: Ledger) -> dict[str, Any]:
    """The same figures, unrounded; null is not measured."""
    whole = ledger.used
    return {
        "total": {"runs": len(ledger.runs), **figures(whole)},
        "purposes": {
            purpose: {"runs": runs, **figures(used), "shares": shares(used, whole)}
            for purpose, (runs, used) in ledger.by_purpose().items()
        },
        "runs": [_run_figures(run) for run in ledger.runs],
        "hardware": machines(ledger.starts),
        "energy": accuracy(ledger.starts),
        "versions": versions_of(ledger.starts),
        "damaged_lines": ledger.damaged,
        "runs_without_record": ledger.unrecorded,
        "runs_that_share_starts": ledger.copies,
        "notes": list(tables.NOTES),
    }


def _run_figures(run: RunUse) -> dict[str, Any]:
    return {
        "name": run.name,
        "purpose": run.purpose,
        "finished": run.finished,
        "starts": [start.outcome for start in run.record.starts],
        "task": task_name(run.recipe) if run.recipe else None,
        "rows": dict(run.rows) or None,
        "model": model_name(run.recipe),
        "training": training_of(run.recipe),
        **(figures(run.record.used) if run.record.starts else {}),
        "stages": {name: figures(used) for name, used in run.record.stages().items()},
        "per_1000_predictions": per_thousand(run.evaluations),
        "damaged_lines": run.record.damaged,
    }


def _warnings(ledger: Ledger) -> list[str]:
    told = []
    if ledger.unrecorded:
        told.append(f"**Not counted:** {', '.join(ledger.unrecorded)}: no record of what they used.")
    if ledger.copies:
        told.append(f"**Counted more than once:** {', '.join(ledger.copies)} share starts: one is a copy of another.")
    if ledger.damaged:
        runs = ", ".join(f"{run.name} ({run.record.damaged})" for run in ledger.runs if run.record.damaged)
        told.append(f"**Damaged:** {ledger.damaged} line(s) of the records cannot be read and are left out: {runs}.")
    unseen = {what for start in ledger.starts for what in start.machine.get("unseen", ())}
    told += [f"**Not seen:** {what}." for what in sorted(unseen)]
    return told


def _bullets(lines: Iterable[str]) -> list[str]:
    found = "\n".join(f"- {line}" for line in lines)
    return [found or UNKNOWN]
