"""Print results, exports, predictions and data reports on standard output."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.cli.agent_memory import agent_memory_tables
from toolkit.cli.figures import percent, points
from toolkit.data.sample import Answer
from toolkit.pipeline.gpu_peaks import describe_peaks
from toolkit.pipeline.results import ResultRow, RunResults
from toolkit.runfolder import EXPORT, outdated
from toolkit.runfolder.usage import compute_line

if TYPE_CHECKING:
    from toolkit.data.loading import DataSplits
    from toolkit.images import ScanReport
    from toolkit.runfolder import RunFolder
    from toolkit.training.completions_file import ScoredCompletion

FOLDER = "{folder}"
"""Placeholder for the folder of a format in the commands of an export's record."""

WIDTH = 120
"""Columns of tables that do not go to a terminal."""

MAX_IMAGES = 20
"""Unusable images that are listed."""

MAX_STEPS = 40
"""Predicted GUI steps that are printed."""

NARROW = 108
"""A terminal with fewer columns shows intervals on their own lines."""


def results(found: RunResults) -> None:
    """Print the tables of results, and where the files are."""
    console = _console()
    for score, rows in found.tables.items():
        console.print(_table(score, found.split, rows, console.width))
    for table in agent_memory_tables(found.agent_memory):
        console.print(table)
    fresh = found.run.is_done(EXPORT) and not outdated(found.run)
    if fresh and "gguf" in (record := found.run.record(EXPORT)):
        console.print(gguf_table(record["gguf"]))
    console.print(f"run folder: {found.run.path}", markup=False)
    for line in _weights(found.run):
        console.print(line, markup=False, soft_wrap=True)
    used = compute_line(found.run.compute_file)
    if used is not None:
        console.print(f"compute: {used}. Full report: toolkit report compute {found.run.path}", markup=False)
    if found.gpu_memory:
        console.print(f"peak GPU memory: {describe_peaks(found.gpu_memory)}", markup=False)
    console.print("all figures: results.json. All completions: stages/evaluate-*/predictions.jsonl", markup=False)
    if found.agent_memory:
        console.print("GUI steps: predictions.csv, details.jsonl and metrics.json in the same folders", markup=False)


def _weights(run: "RunFolder") -> Iterator[str]:
    """Yield where the weights are, and the commands that serve the exported ones."""
    weights = run.trained_weights()
    if weights is not None:
        yield f"weights: {weights}"
    if older := outdated(run):
        yield f"the exports are weights from before the last training ({older}). Update them with toolkit export"
        return
    merged = run.path / "stages" / EXPORT / "merged"
    if merged.is_dir():
        yield f"merged weights: {merged}"
    if run.is_done(EXPORT):
        for exported_format in run.record(EXPORT).values():
            if isinstance(exported_format, dict):
                yield from _serving(exported_format, run.path / exported_format["folder"])


def _table(score: str, split: str, rows: "Sequence[ResultRow]", width: int) -> Table:
    table = Table(title=f"{score} on the {split} split, 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    for name in ("n", score, "to the row above", "to the baseline"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = [percent(row.estimate), points(row.to_previous), points(row.to_baseline)]
        gap = "\n" if width < NARROW else " "
        table.add_row(row.label, f"{row.estimate.n:,}", *(cell.replace(" [", f"{gap}[") for cell in cells))
    return table


def exported(record: Mapping[str, Any], folder: Path) -> None:
    """Print each exported format: its folder, size, verification, and the commands that serve it."""
    for name in record["asked"]:
        if name not in record:
            print(f"{name}: not written, because full fine-tuning has no adapter")
            continue
        found, place = record[name], folder / record[name]["folder"]
        if name == "gguf":
            print(f"gguf: {place}")
            _console().print(gguf_table(found))
        else:
            print(f"{name}: {place} ({found['megabytes']:,} MB, {found['bits']} bits, {_verification(found)})")
        for line in _serving(found, place):
            print(line)
    if "pushed" in record:
        print(f"pushed: {record['pushed']}")


def gguf_table(record: Mapping[str, Any]) -> Table:
    """Return one row per GGUF file: size, agreement with the merged weights, and score."""
    verified = record["questions"] > 0
    kind = "held-out samples" if record.get("held_out", True) else "training samples, because none are held out"
    title = f"GGUF, {record['questions']} {kind}" if verified else "GGUF, not verified"
    table = Table(title=title, caption=_gguf_caption(record) if verified else None)
    for name in ("", "file"):
        table.add_column(name, overflow="fold")
    for name in ("MB", "bits", "as merged", "gap", "score"):
        table.add_column(name, justify="right")
    for quantization, found in record["files"].items():
        size = (f"{found['megabytes']:,}", f"{found['bits']:g}")
        table.add_row(quantization, found["file"], *size, *_agreement(found))
    table.add_row("mmproj", record["mmproj"], f"{record['mmproj_megabytes']:,}", "16", "", "", "")
    return table


def _agreement(found: Mapping[str, Any]) -> tuple[str, str, str]:
    if not found.get("questions"):
        return "", "", ""
    score = found["score"]["value"]
    same = 1 - found["differing"] / found["questions"]
    return f"{same:.1%}", f"{found['gap']:.2g}", "" if score is None else f"{score:.1%}"


def _gguf_caption(record: Mapping[str, Any]) -> str:
    score = next(iter(record["files"].values()))["score"]
    return (
        "as merged: completions equal to those of the merged weights. gap: largest difference of a token's "
        f"log-probability. score: {score['name']} on these samples"
    )


def _serving(found: Mapping[str, Any], place: Path) -> Iterator[str]:
    """Yield the commands that serve a format, one per line."""
    for command in found.get("next", ()):
        yield f"  serve it: {command.replace(FOLDER, shlex.quote(str(place)))}"


def _verification(found: Mapping[str, Any]) -> str:
    if not found["questions"]:
        return "not verified"
    kind = "held-out" if found.get("held_out", True) else "training"
    return f"{found['questions'] - found['differing']} of {found['questions']} {kind} completions unchanged"


def answer(found: Answer) -> None:
    """Print a prediction: the completion, the parsed values, and why it could not be parsed."""
    print(found.text)
    for name, value in found.values.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        print(f"{name.replace('_', ' ')}: {shown}")
    if found.problem is not None:
        print(f"could not be parsed: {found.problem}")
    if found.truncated:
        print("truncated at the token limit")


def steps(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Print predicted GUI steps, and the file that has all of them."""
    table = Table()
    for name in ("Task_id", "step", "action", "target", "coords", "problem"):
        table.add_column(name, overflow="fold")
    for line in lines[:MAX_STEPS]:
        coords = ", ".join(f"{number:.0f}" for number in line["coords"] or ())
        cells = (line["Task_id"], line["step"], line["action"], line["target"], coords, line["problem"])
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
    console = _console()
    console.print(table)
    if len(lines) > MAX_STEPS:
        console.print(f"and {len(lines) - MAX_STEPS:,} more")
    unparsed = sum(line["problem"] is not None for line in lines)
    console.print(f"{len(lines):,} GUI steps, {unparsed:,} not parsed: {file}", markup=False)


def rendered(rows: Sequence[tuple[str, str]]) -> None:
    """Print rows as the model sees them."""
    for name, text in rows:
        print(f"\n{name} (the SFT loss covers the text between ⟦ and ⟧):\n{text}")


def synthetic(task: str, files: Mapping[str, Path]) -> None:
    """Print the files of synthetic data as the section of a recipe."""
    print(f'[data]\ntask = "{task}"')
    for split, file in files.items():
        print(f'{split} = "{file.absolute()}"')


def data(found: "DataSplits", scan: "ScanReport") -> None:
    """Print splits, announcements (such as leaks), unusable rows and images."""
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
    for bad in scan.bad[:MAX_IMAGES]:
        print(f"  {bad.error}")
    print(f"fingerprint: {found.fingerprint}")


def scored(completions: "Sequence[ScoredCompletion]") -> None:
    """Print the score of each completion with explanations, then the mean of every reward over its completions."""
    values: dict[str, list[float]] = {}
    for one in completions:
        problem = f"  (could not be parsed: {one.problem})" if one.problem else ""
        name = one.place if one.id == one.place else f"{one.place}, {one.id}"
        print(f"{name}: {one.total:.3f}{problem}")
        for explanation in one.explanations:
            print(f"  {explanation}")
            if explanation.value is not None:
                values.setdefault(explanation.reward, []).append(explanation.value)
    print(f"mean of {len(completions):,}: {sum(one.total for one in completions) / len(completions):.3f}")
    for name, found in values.items():
        print(f"  {name:<12} {sum(found) / len(found):.3f} (applies to {len(found):,})")


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
