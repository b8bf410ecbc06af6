"""Build the report of one run or several, and write it as HTML, Markdown or JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import RunError, ToolkitError, warn
from toolkit.evaluation.results import BASELINE, LABELS
from toolkit.models.model_paths import public_name
from toolkit.reporting.blocks import Part, Report, Section, Text
from toolkit.reporting.classification import confusion_section, probabilities_section
from toolkit.reporting.comparison import comparison_sections
from toolkit.reporting.compute import compute_blocks, compute_json
from toolkit.reporting.curves import training_section
from toolkit.reporting.data_summary import data_section
from toolkit.reporting.embedding import ImageBudget
from toolkit.reporting.evaluated_rows import EvaluatedRows, evaluated_rows
from toolkit.reporting.examples import EACH, examples_section
from toolkit.reporting.figures import interval, points, value
from toolkit.reporting.finished_run import FinishedRun, read_run
from toolkit.reporting.imagegen import imagegen_sections
from toolkit.reporting.ledger import Ledger, find_runs, read_ledger
from toolkit.reporting.markdown import markdown_page
from toolkit.reporting.page import html_page
from toolkit.reporting.plan_measured import plan_section
from toolkit.reporting.recipe_text import recipe_section
from toolkit.reporting.results import others_section, results_section
from toolkit.reporting.subgroups import subgroups_section
from toolkit.reporting.summaries import model_name, task_name, training_of
from toolkit.runfolder import (
    SCHEMA_VERSION,
    RunFolder,
    add_output,
    claim_file,
    has_text,
    hashed_names,
    json_text,
    read_saved,
    read_state,
    write_text,
)

Format = Literal["html", "markdown", "json"]
SUFFIXES: Mapping[str, Format] = {".html": "html", ".md": "markdown", ".json": "json"}
"""Suffix of a file -> format."""

MAX_BYTES = 10_000_000
"""Largest report."""

IMAGE_BYTES = 6_000_000
"""Largest sum of all embedded images, in characters of base64."""

MIN_EACH = 3
"""Least number of examples of each outcome, if a report has several runs."""

MAX_RUNS = 6
"""Runs that are shown with all of their sections. Of more runs, only the comparison is shown."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report has of rows.

    Attributes:
        images: embed images.
        examples: show questions and completions. False: the report has no text and no image of a row.
    """

    images: bool = True
    examples: bool = True


def write_run_report(run: RunFolder) -> Path | None:
    """Write the HTML report of a run into its folder, at the end of a command that works in it.

    A failure is a warning, because the results of the run are complete without its report.

    Returns:
        The file. None: it could not be written.
    """
    try:
        return _write_into_run(run, html_report([run.path]), force=False)
    except (ToolkitError, OSError, ValueError, ArithmeticError) as error:  # matplotlib cannot draw some numbers
        reason = error.rule if isinstance(error, ToolkitError) else getattr(error, "strerror", type(error).__name__)
        rule = f"the report should be written ({reason})"
        remedy = f"Write it with `toolkit report {run.path}`."
        warn("report.not_written", rule, place=run.report_file, remedy=remedy)
        return None


def report_runs(
    paths: Sequence[Path],
    out: Path | None = None,
    form: Format | None = None,
    options: ReportOptions = ReportOptions(),
    *,
    force: bool = False,
) -> Path | str:
    """Report on runs.

    Args:
        paths: run folders, or folders that contain runs.
        out: the file to write. None: the folder of the run for HTML of one run, otherwise the text is returned.
        form: the format. None: that of the suffix of ``out``, otherwise HTML.
        options: what the report has of rows.
        force: rename an existing ``out`` to ``NAME.old-1`` instead of raising an error.

    Returns:
        The file that was written, or the text of the report.

    Raises:
        RunError: a path is no run, the suffix of ``out`` belongs to no format or another one, or the file exists.
    """
    chosen = _format(out, form)
    folders = find_runs(paths)
    if chosen == "html" and out is None and len(folders) > 1:
        rule, remedy = "must be given for the report of several runs", "Add --out report.html."
        raise RunError("report.out_missing", rule, place="--out", remedy=remedy)
    if chosen == "html":
        text = html_report(paths, options)
        if out is None:
            return _write_into_run(folders[0], text, force=force)
    else:
        text = (
            markdown_page(build_report(paths, ReportOptions(images=False, examples=False)))
            if chosen == "markdown"
            else json_text(report_json(paths))
        )
    if out is None:
        return text
    if not has_text(out, text):
        claim_file(out, force=force)
        write_text(out, text, private=chosen == "html" and options.examples)
    return out


def html_report(paths: Sequence[Path], options: ReportOptions = ReportOptions()) -> str:
    """Return the HTML report of runs, of at most ``MAX_BYTES``. If it would be larger, it has no images or examples."""
    for fewer in (options, replace(options, images=False), replace(options, images=False, examples=False)):
        text = html_page(build_report(paths, fewer))
        if len(text.encode("utf-8", "surrogatepass")) <= MAX_BYTES:
            break
    return text


def build_report(paths: Sequence[Path], options: ReportOptions = ReportOptions()) -> Report:
    """Return the report of runs.

    Args:
        paths: run folders, or folders that contain runs. Differences are to the first one.
        options: what the report has of rows.

    Raises:
        RunError: a path is no run, or a result, a metric or a prediction of a run is damaged.
    """
    ledger = read_ledger(paths)
    runs, damaged = _read_runs(paths, ledger)
    whole = runs if len(runs) <= MAX_RUNS else []
    rows = {run.name: evaluated_rows(run) for run in whole}
    compute = Section("compute", "Compute", tuple(compute_blocks(ledger)))
    budget = ImageBudget(IMAGE_BYTES, "" if options.images else "Images are left out.")
    each = max(MIN_EACH, EACH // max(1, len(whole)))
    parts = [
        Part(f"run-{number}", run.name, tuple(_sections(run, rows[run.name], options, budget, each)))
        for number, run in enumerate(whole)
    ]
    if len(ledger.runs) == 1 and parts:
        (part,) = parts
        parts = [replace(part, sections=(*part.sections, compute))]
    else:
        compared = comparison_sections(runs, rows) if runs else []
        left_out = [Section("damaged", "Damaged runs", damaged)] if damaged else []
        parts.insert(0, Part("runs", "Comparison", (*left_out, *compared, compute)))
    title = runs[0].name if len(ledger.runs) == 1 and runs else f"{len(ledger.runs):,} runs"
    facts = (
        _facts(runs[0]) if len(ledger.runs) == 1 and runs else [("runs", ", ".join(one.name for one in ledger.runs))]
    )
    return Report(title, tuple(facts), tuple(parts), has_rows=options.examples and any(rows.values()))


def _read_runs(paths: Sequence[Path], ledger: Ledger) -> tuple[list[FinishedRun], tuple[Text, ...]]:
    """Return the runs of this version, and a warning about each run whose files are damaged, unless it is the only one.

    Raises:
        RunError: the only run is damaged.
    """
    readable = {one.folder.path for one in ledger.runs if one.readable}
    runs, damaged = [], []
    for folder, name in _named(find_runs(paths)):
        if folder.path in readable:
            try:
                runs.append(read_run(folder, name))
            except RunError as error:
                if len(ledger.runs) == 1:
                    raise
                damaged.append(Text(f"{name} is counted, but its results are not shown: {error.rule}.", "warning"))
    return runs, tuple(damaged)


def report_json(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the unrounded figures of runs: results, metrics and usage. It has no texts of rows and no paths."""
    ledger = read_ledger(paths)
    found = {folder.path: name for folder, name in _named(find_runs(paths))}
    runs = [
        {"name": found[one.folder.path], "results": _results(one.folder), "metrics": one.folder.metrics()}
        for one in ledger.runs
        if one.readable
    ]
    return {"schema_version": SCHEMA_VERSION, "runs": runs, "compute": compute_json(ledger)}


def _sections(
    run: FinishedRun, rows: EvaluatedRows | None, options: ReportOptions, budget: ImageBudget, each: int
) -> Iterator[Section]:
    with hashed_names(run.folder.path):
        found: list[Section | None] = [
            *imagegen_sections(run, budget, images=options.images),
            results_section(run),
            others_section(run),
            training_section(run),
            confusion_section(run),
            probabilities_section(run, rows),
            subgroups_section(run, hide_small=not options.examples),
            examples_section(run, rows, budget, each) if rows is not None and options.examples else None,
            data_section(run),
            plan_section(run),
            recipe_section(run),
        ]
    yield from (section for section in found if section is not None)


def _facts(run: FinishedRun) -> list[tuple[str, str]]:
    """Return the facts about a run, with its last score and the difference to the first evaluation."""
    facts = [("started", read_state(run.folder).sessions[0].started[:16].replace("T", " ") + " UTC")]
    if run.recipe is not None:
        facts += [
            ("task", task_name(run.recipe)),
            ("model", model_name(run.recipe) or ""),
            ("training", training_of(run.recipe) or "none"),
        ]
    if run.last is not None:
        label, last = run.last
        found = last.primary.value
        facts.append((f"{last.score} {label}", f"{value(found)} ({interval(found)}, n {found.n:,})"))
        for name, change in list(last.primary.differences.items())[:2]:
            other = "the baseline" if name == BASELINE else LABELS.get(name, name)
            facts.append((f"points to {other}", points(change.difference)))
    return facts


def _named(folders: Sequence[RunFolder]) -> list[tuple[RunFolder, str]]:
    """Return each folder with a name of its own: that of the folder, with a number if another run has it."""
    found: list[tuple[RunFolder, str]] = []
    for folder in folders:
        taken = {name for _, name in found}
        names = (folder.name, *(f"{folder.name} ({number})" for number in range(2, len(folders) + 2)))
        found.append((folder, next(name for name in names if name not in taken)))
    return found


def _results(run: RunFolder) -> dict[str, Any] | None:
    """Return the content of results.json without paths. None: the file is missing or damaged."""
    found = read_saved(run.results_file)
    if not isinstance(found, dict):
        return None
    data = found.get("data")
    if isinstance(data, dict):
        data.pop("sources", None)
        dropped = data.get("dropped") or []
        if not isinstance(dropped, list) or not all(
            isinstance(one, dict) and isinstance(one.get("source"), str) for one in dropped
        ):
            return None
        for one in dropped:
            one["source"] = public_name(one["source"])
    return found


def _format(out: Path | None, form: Format | None) -> Format:
    known = SUFFIXES.get(out.suffix) if out is not None else form or "html"
    if known is None or form not in (None, known):
        expected = next((suffix for suffix, name in SUFFIXES.items() if name == form), None)
        rule = f"the file must end in {expected or '.html, .md or .json'}"
        raise RunError("run.report_format_unknown", rule, place="--out", value=str(out), remedy="Choose another name.")
    return known


def _write_into_run(run: RunFolder, text: str, *, force: bool) -> Path:
    """Write the report into the folder of its run. Only a report that a command wrote is replaced."""
    return add_output(run.path, run.report_file.name, text, force=force, private=True)
