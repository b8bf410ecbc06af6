"""Print results, exports, predictions and data reports on standard output."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.cli.output import print_json
from toolkit.data.sample import Answer
from toolkit.evaluation.results import BASELINE, AgentMemoryResult, Difference, EvaluationResult, ProbabilityResult
from toolkit.exporting.exported import outdated
from toolkit.exporting.results import ExportResult, FormatExport, GgufExport, Verification
from toolkit.pipeline import ResultRow, RunResults
from toolkit.reporting.gpu_peaks import describe_peaks
from toolkit.runfolder import EXPORT
from toolkit.runfolder.usage import compute_line
from toolkit.scoring.statistics import Estimate, OneClass, ProbabilityMetrics

if TYPE_CHECKING:
    from toolkit.data.benchmark import Published
    from toolkit.data.loading import DataSplits
    from toolkit.evaluation.predict_rows import RowPredictions
    from toolkit.images import ScanReport
    from toolkit.training.completions_file import ScoredCompletion

FOLDER = "{folder}"
"""Placeholder for the folder of a format in the commands of an export."""

WIDTH = 120
"""Columns of tables that do not go to a terminal."""

MAX_IMAGES = 20
"""Unusable images that are listed."""

MAX_STEPS = 40
"""Predicted GUI steps that are printed."""

NARROW = 108
"""A terminal with fewer columns shows intervals on their own lines."""

OWN = "own"
"""The mode that is compared with the others. If it is missing, the first one is."""

MAX_POSITIONS = 10
"""Positions in an episode that get a column."""

Results = Mapping[str, AgentMemoryResult]
"""Label in the table of results -> its comparison of modes."""


def results(found: RunResults) -> None:
    """Print the tables of results, and where the files are."""
    console = _console()
    for score, rows in found.tables.items():
        console.print(_table(score, found.split, rows, console.width))
    if found.last is not None:
        for table in _further_tables(*found.last, console.width):
            console.print(table)
    for table in agent_memory_tables(found.agent_memory):
        console.print(table)
    if found.export is not None and found.export.gguf is not None and not outdated(found.run):
        console.print(gguf_table(found.export.gguf))
    _print_files(console, found)


def _print_files(console: Console, found: RunResults) -> None:
    """Print the usage of the run, and where its files are."""
    console.print(f"run folder: {found.run.path}", markup=False)
    for line in _weights(found):
        console.print(line, markup=False, soft_wrap=True)
    used = compute_line(found.run.compute_file)
    if used is not None:
        console.print(f"compute: {used}", markup=False)
    if found.gpu_memory:
        console.print(f"peak GPU memory: {describe_peaks(found.gpu_memory)}", markup=False)
    if found.run.report_file.is_file():
        console.print(f"report: {found.run.report_file}", markup=False, soft_wrap=True)
    console.print("all figures: results.json. All completions: stages/evaluate-*/predictions.jsonl", markup=False)
    if found.agent_memory:
        console.print("GUI steps: predictions.csv, details.jsonl and metrics.json in the same folders", markup=False)


def results_or_json(found: RunResults, *, as_json: bool) -> None:
    """Print the results of a run as tables, or as one JSON object."""
    if as_json:
        print_json(found)
    else:
        results(found)


def published(scores: "Sequence[Published]") -> None:
    """Print the published scores of a benchmark, which were not measured here."""
    for one in scores:
        print(f"published: {100 * one.score:.1f} % for {one.model} ({one.source}). Not measured here")


def exported(result: ExportResult, run: Path) -> None:
    """Print each exported format: its folder, size, verification, and the commands that serve it."""
    for name in result.requested:
        export = result.formats.get(name)
        if export is None:
            print(f"{name}: not written, because full fine-tuning has no adapter")
            continue
        folder = run / export.folder
        if isinstance(export, GgufExport):
            print(f"gguf: {folder}")
            _console().print(gguf_table(export))
        else:
            size, verified = f"{export.megabytes:,} MB", describe_verification(export.verification)
            print(f"{name}: {folder} ({size}, {export.bits} bits, {verified})")
        for line in _serving(export, folder):
            print(line)
    if result.pushed:
        print(f"pushed: {result.pushed}")


def gguf_table(export: GgufExport) -> Table:
    """Return one row per GGUF file: size, agreement with the merged weights, and score."""
    title, caption = "GGUF, not verified", None
    if found := export.verification:
        split = "held-out samples" if found.held_out else "training samples, because none are held out"
        title = f"GGUF, {found.samples} {split}"
        caption = (
            "as merged: completions equal to those of the merged weights. gap: largest difference of a token's "
            f"log-probability. score: {found.score.name} on these samples"
        )
    table = Table(title=title, caption=caption)
    for name in ("", "file"):
        table.add_column(name, overflow="fold")
    for name in ("MB", "bits", "as merged", "gap", "score"):
        table.add_column(name, justify="right")
    for quantization, file in export.files.items():
        size = (f"{file.megabytes:,}", f"{file.bits:g}")
        table.add_row(quantization, file.file, *size, *_agreement(file.verification))
    table.add_row("mmproj", export.mmproj, f"{export.mmproj_megabytes:,}", "16", "", "", "")
    return table


def describe_verification(found: Verification | None) -> str:
    """Return how many completions a verification found unchanged."""
    if found is None:
        return "not verified"
    split = "held-out" if found.held_out else "training"
    return f"{found.samples - found.differing} of {found.samples} {split} completions unchanged"


def answer(found: Answer) -> None:
    """Print a prediction: the completion, the parsed values, and why it could not be parsed."""
    print(found.text)
    for name, value in found.values.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        print(f"{name.replace('_', ' ')}: {shown}")
    for name, probability in (found.probabilities or {}).items():
        print(f"probability of {name}: {probability:.3f}")
    if found.problem is not None:
        print(f"could not be parsed: {found.problem}")
    if found.truncated:
        print("truncated at the token limit")


def row_predictions(found: "RowPredictions") -> None:
    """Print the counts of a table of predictions. Unusable rows were logged before."""
    unparsed = sum(found.problems.values())
    rows = f"{found.rows:,} {'row' if found.rows == 1 else 'rows'}"
    print(f"{rows}, {unparsed:,} without an answer, {found.truncated:,} truncated: {found.out}")
    for problem, number in found.problems.items():
        print(f"  {number:,} {'row' if number == 1 else 'rows'}: {problem}")
    if dropped := sum(one.count for one in found.dropped):
        print(f"{dropped:,} {'row of the source is' if dropped == 1 else 'rows of the source are'} not in the file")


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
    """Print sources with their formats, splits, warnings (such as leaks), unusable rows and images."""
    from toolkit.pipeline.prepare_data import describe_scan

    for source in found.sources:
        print(source)
    for split in ("train", "validation", "test"):
        samples = getattr(found, split)
        groups = len({sample.group for sample in samples})
        print(f"{split}: {len(samples):,} rows in {groups:,} groups")
    unusable = {str(one.notice("left out")) for one in found.dropped}
    for line in map(str, found.warnings):
        if line not in unusable:
            print(line)
    print(f"unusable rows: {sum(one.count for one in found.dropped):,}")
    for dropped in found.dropped:
        print(f"  {dropped}")
    if not found.leaks:
        print(found.leaks)
    print(describe_scan(scan))
    for note in scan.notes:
        print(f"  {note.rule}")
    for bad in scan.bad[:MAX_IMAGES]:
        print(f"  {bad.problem}")
    print(f"fingerprint: {found.fingerprint}")


def scored(completions: "Sequence[ScoredCompletion]") -> None:
    """Print the score of each completion with explanations, then the mean of every reward over its completions."""
    values: dict[str, list[float]] = {}
    for one in completions:
        problem = f"  (could not be parsed: {one.problem})" if one.problem else ""
        print(f"{one.place}: {one.total:.3f}{problem}")
        for explanation in one.explanations:
            print(f"  {explanation}")
            if explanation.value is not None:
                values.setdefault(explanation.reward, []).append(explanation.value)
    print(f"mean of {len(completions):,}: {sum(one.total for one in completions) / len(completions):.3f}")
    for name, found in values.items():
        print(f"  {name:<12} {sum(found) / len(found):.3f} (applies to {len(found):,})")


def scored_json(one: "ScoredCompletion") -> dict[str, Any]:
    """Return a scored completion as a JSON object, without its text."""
    return {"place": one.place, "total": one.total, "problem": one.problem, "rewards": one.explanations}


def percent(estimate: Estimate) -> str:
    """Return an estimate in percent with its interval, or "-" if it has no value."""
    if estimate.value is None:
        return "-"
    return f"{100 * estimate.value:.1f} %{_interval(estimate, '.1f')}"


def points(found: Difference | None) -> str:
    """Return a paired difference in percentage points with its interval, or an empty string if it has no value."""
    return "" if found is None else change(found.difference)


def change(found: Estimate | None) -> str:
    """Return a difference in percentage points with its interval, or an empty string if it has no value."""
    if found is None or found.value is None:
        return ""
    return f"{100 * found.value:+.1f}{_interval(found, '+.1f')}"


def agent_memory_tables(results: Results) -> Iterator[Table]:
    """Yield the tables of these evaluations. There are none if the task has no agent memory."""
    if not results:
        return
    yield _modes(results)
    yield _failures(results)
    last = list(results)[-1]
    for column in next(iter(results[last].modes.values())).by:
        yield _by(last, column, results[last])


def _weights(found: RunResults) -> Iterator[str]:
    """Yield where the weights are, and the commands that serve the exported ones."""
    run = found.run
    weights = run.trained_weights()
    if weights is not None:
        yield f"weights: {weights}"
    if older := outdated(run):
        yield f"the exports are weights from before the last training ({older}). Update them with toolkit export"
        return
    merged = run.path / "stages" / EXPORT / "merged"
    if merged.is_dir():
        yield f"merged weights: {merged}"
    for export in found.export.formats.values() if found.export else ():
        yield from _serving(export, run.path / export.folder)


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


def _further_tables(label: str, found: EvaluationResult, width: int) -> Iterator[Table]:
    """Yield the tables of the metrics of the whole set, and of class probabilities, if the task has them."""
    if found.set_metrics:
        yield _set_metrics(label, found, width)
    if found.probabilities is not None:
        yield _probabilities(label, found.split, found.probabilities)


def _probabilities(label: str, split: str, found: ProbabilityResult) -> Table:
    """Return one row per class, and their means with the difference to the earlier evaluation."""
    metrics = found.metrics
    table = Table(
        title=f"class probabilities on the {split} split, {label}, 95 % intervals in brackets",
        caption=probability_caption(found, split),
    )
    table.add_column("", overflow="fold")
    for name in ("positive / negative", "AUROC", "average precision", "prevalence", "sensitivity at 95 % specificity"):
        table.add_column(name, justify="right", overflow="fold")

    def add(name: str, counts: str, one: OneClass | ProbabilityMetrics, reached: str) -> None:
        cells = (percent(one.auroc), percent(one.average_precision), fraction(one.prevalence), reached)
        table.add_row(name, counts, *(cell.replace(" [", "\n[") for cell in cells))

    for name, one in metrics.classes.items():
        at = {(point.fixed, point.level): percent(point.sensitivity) for point in one.operating_points}
        add(name, f"{one.positives:,} / {one.negatives:,}", one, at.get(("specificity", 0.95), "-"))
    table.add_section()
    add("mean of classes", f"n {metrics.n:,}", metrics, "")
    return table


def probability_caption(found: ProbabilityResult, split: str) -> str:
    """Return calibration, differences to the earlier evaluation, and the origin of thresholds, in sentences."""
    metrics = found.metrics
    parts = [
        f"A constant probability has an AUROC of 50 % and the prevalence as its average precision. Calibration error "
        f"({metrics.bins} bins): {percent(metrics.calibration_error)}. Brier score: {percent(metrics.brier)}."
    ]
    if metrics.top_accuracy is not None:
        parts.append(f"Accuracy of the most probable class: {percent(metrics.top_accuracy)}.")
    for name, differences in list(found.differences.items())[-1:]:
        parts += [f"{metric} minus {name}: {change(value)} points." for metric, value in differences.items()]
    own = "the evaluated split itself, so these rates are optimistic"
    parts.append(f"Thresholds were chosen on {own if metrics.thresholds_from == split else 'the validation split'}.")
    return " ".join(parts)


def fraction(value: float | None) -> str:
    """Return a fraction in percent, or "-" if it has no value."""
    return "-" if value is None else f"{100 * value:.1f} %"


def _set_metrics(label: str, found: EvaluationResult, width: int) -> Table:
    """Return one row per metric of the whole set, with its differences."""
    table = Table(title=f"metrics of the whole {found.split} split, {label}, 95 % intervals in brackets")
    table.add_column("", overflow="fold")
    for name in ("n", "value", "majority baseline", "to the earlier evaluation", "to the baseline"):
        table.add_column(name, justify="right", overflow="fold")
    gap = "\n" if width < NARROW else " "
    for name, one in found.set_metrics.items():
        cells = (
            percent(one.value),
            percent(one.baseline),
            change(one.to_previous),
            change(one.differences.get(BASELINE)),
        )
        table.add_row(name, f"{one.value.n:,}", *(cell.replace(" [", f"{gap}[") for cell in cells))
    return table


def _agreement(found: Verification | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    score = found.score.value
    same = 1 - found.differing / found.samples
    return f"{same:.1%}", f"{found.gap:.2g}", "" if score is None else f"{score:.1%}"


def _serving(export: FormatExport, folder: Path) -> Iterator[str]:
    """Yield the commands that serve a format, one per line."""
    for command in export.commands:
        yield f"  serve it: {command.replace(FOLDER, shlex.quote(str(folder)))}"


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def _interval(estimate: Estimate, spec: str) -> str:
    if estimate.low is None or estimate.high is None:
        return " [no interval]"
    return f" [{100 * estimate.low:{spec}} to {100 * estimate.high:{spec}}]"


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
