"""What the commands print on standard output."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.cli.agent_memory import memory_tables
from toolkit.cli.exports import gguf_table
from toolkit.cli.figures import percent, points
from toolkit.data.sample import Answer
from toolkit.pipeline.gpu_peaks import describe_peaks, gpu_peaks
from toolkit.pipeline.results import ResultRow, Results
from toolkit.runfolder import EXPORT, outdated
from toolkit.runfolder.usage import compute_line

if TYPE_CHECKING:
    from toolkit.data.loading import DataSplits
    from toolkit.images import ScanReport
    from toolkit.runfolder import RunFolder
    from toolkit.training.reward_test import ScoredCompletion

FOLDER = "{folder}"
"""Stands in a command of an export's record for the folder of the form."""

WIDTH = 120
"""Of tables that do not go to a terminal."""

MOST_PICTURES = 20
"""Unusable pictures that are named."""

MOST_STEPS = 40
"""Predicted steps that are printed."""

NARROW = 108
"""A terminal with fewer columns gets intervals on lines of their own."""


def results(found: Results) -> None:
    """The table of results, and where everything lies."""
    console = _console()
    for score, rows in found.tables.items():
        console.print(_table(score, found.split, rows, console.width))
    for table in memory_tables(found.agent_memory):
        console.print(table)
    fresh = found.run.is_done(EXPORT) and not outdated(found.run)
    if fresh and "gguf" in (record := found.run.record(EXPORT)):
        console.print(gguf_table(record["gguf"]))
    console.print(f"run folder: {found.run.path}", markup=False)
    for line in _weights(found.run):
        console.print(line, markup=False, soft_wrap=True)
    used = compute_line(found.run.compute_file)
    if used is not None:
        console.print(f"compute: {used}; full: toolkit report compute {found.run.path}", markup=False)
    if peaks := gpu_peaks(found.run):
        console.print(f"peak GPU memory: {describe_peaks(peaks)}", markup=False)
    console.print("every figure: results.json; every answer: stages/evaluate-*/predictions.jsonl", markup=False)
    if found.agent_memory:
        console.print("step by step: predictions.csv, details.jsonl and metrics.json in the same folders", markup=False)


def _weights(run: "RunFolder") -> Iterator[str]:
    """Where the weights are, and what serves those that were exported."""
    weights = run.trained_weights()
    if weights is not None:
        yield f"weights: {weights}"
    if older := outdated(run):
        yield f"exported are weights from before the last training ({older}): toolkit export writes these"
        return
    merged = run.path / "stages" / EXPORT / "merged"
    if merged.is_dir():
        yield f"merged weights, for other programs: {merged}"
    if run.is_done(EXPORT):
        for form in run.record(EXPORT).values():
            if isinstance(form, dict):
                yield from _serving(form, run.path / form["folder"])


def _table(score: str, split: str, rows: "Sequence[ResultRow]", width: int) -> Table:
    table = Table(title=f"{score} on held-out questions ({split}), 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    for name in ("n", score, "to the row above", "to the baseline"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        estimate = row.estimate
        cells = [percent(estimate), points(row.to_previous), points(row.to_baseline)]
        gap = "\n" if width < NARROW else " "
        table.add_row(row.label, f"{estimate['n']:,}", *(cell.replace(" [", f"{gap}[") for cell in cells))
    return table


def exported(record: Mapping[str, Any], folder: Path) -> None:
    """What an export has left: each form with its size, how it answered after reloading, and what serves it."""
    for form in record["asked"]:
        if form not in record:
            print(f"{form}: not written, since full fine-tuning leaves no adapter")
            continue
        found, place = record[form], folder / record[form]["folder"]
        if form == "gguf":
            print(f"gguf: {place}")
            _console().print(gguf_table(found))
        else:
            print(f"{form}: {place} ({found['megabytes']:,} MB, {found['bits']} bits; {_proven(found)})")
        for line in _serving(found, place):
            print(line)
    if "pushed" in record:
        print(f"pushed: {record['pushed']}")


def _serving(found: Mapping[str, Any], place: Path) -> Iterator[str]:
    """The commands that serve a form, one line each."""
    for command in found.get("next", ()):
        yield f"  serve it: {command.replace(FOLDER, shlex.quote(str(place)))}"


def _proven(found: Mapping[str, Any]) -> str:
    if not found["questions"]:
        return "not verified"
    kind = "held-out" if found.get("held_out", True) else "training rows'"
    return f"{found['questions'] - found['differing']} of {found['questions']} {kind} answers as before"


def answer(given: Answer) -> None:
    """A prediction: the completion, what was read out of it, and what was wrong with it."""
    print(given.text)
    for name, value in given.values.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        print(f"{name.replace('_', ' ')}: {shown}")
    if given.problem is not None:
        print(f"could not be read: {given.problem}")
    if given.truncated:
        print("cut off at the token limit")


def steps(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The predicted steps of a file's tasks, and where the rest of each stands."""
    table = Table()
    for name in ("Task_id", "step", "action", "target", "coords", "problem"):
        table.add_column(name, overflow="fold")
    for line in lines[:MOST_STEPS]:
        coords = ", ".join(f"{number:.0f}" for number in line["coords"] or ())
        cells = (line["Task_id"], line["step"], line["action"], line["target"], coords, line["problem"])
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
    console = _console()
    console.print(table)
    if len(lines) > MOST_STEPS:
        console.print(f"and {len(lines) - MOST_STEPS:,} more")
    unread = sum(line["problem"] is not None for line in lines)
    console.print(f"{len(lines):,} steps, {unread:,} without a readable answer: {file}", markup=False)


def rendered(rows: Sequence[tuple[str, str]]) -> None:
    """Rows as the model sees them."""
    for name, text in rows:
        print(f"\n{name} (what SFT's loss covers stands between ⟦ and ⟧):\n{text}")


def synthetic(task: str, files: Mapping[str, Path]) -> None:
    """Where the practice data lie, as a recipe names them."""
    print(f'[data]\ntask = "{task}"')
    for split, file in files.items():
        print(f'{split} = "{file.absolute()}"')


def data(found: "DataSplits", scan: "ScanReport") -> None:
    """Splits, announcements (leaks among them), unusable rows, and the pictures."""
    from toolkit.pipeline.prepare_data import describe_scan

    for split in ("train", "validation", "test"):
        samples = getattr(found, split)
        groups = len({sample.group for sample in samples})
        print(f"{split}: {len(samples):,} rows in {groups:,} groups")
    for line in found.announcements:
        print(line)
    print(f"unusable rows: {sum(one.count for one in found.dropped):,}")
    for dropped in found.dropped:
        print(f"  {dropped}")
    if not found.leaks:
        print(found.leaks)
    print(describe_scan(scan))
    for bad in scan.bad[:MOST_PICTURES]:
        print(f"  {bad.error}")
    print(f"fingerprint: {found.fingerprint}")


def scored(completions: "Sequence[ScoredCompletion]") -> None:
    """Each completion's total and why; then the mean of every reward over those it applies to."""
    values: dict[str, list[float]] = {}
    for one in completions:
        unread = f"  (could not be read: {one.problem})" if one.problem else ""
        name = one.place if one.id == one.place else f"{one.place}, {one.id}"
        print(f"{name}: {one.total:.3f}{unread}")
        for explanation in one.explanations:
            print(f"  {explanation}")
            if explanation.value is not None:
                values.setdefault(explanation.reward, []).append(explanation.value)
    print(f"mean of {len(completions):,}: {sum(one.total for one in completions) / len(completions):.3f}")
    for name, found in values.items():
        print(f"  {name:<12} {sum(found) / len(found):.3f} (applies to {len(found):,})")


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
