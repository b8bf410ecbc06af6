"""`toolkit new`: write a first recipe for new data, from prompts or from options."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.options import ArgumentError, AsJson
from toolkit.cli.output import note, print_json
from toolkit.errors import DataProblems, Problem
from toolkit.identifiers import printable

if TYPE_CHECKING:
    from toolkit.pipeline.new_recipe import NewData, Reading, Source
    from toolkit.planning import Gpu

NO_GPU = "none"


def new(
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Training rows: a file, folder or hub:NAME.")
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="SOURCE", help="Test rows. Default: 20 % of the groups.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of the images. Default: that of the rows.")] = None,
    task: Annotated[str | None, typer.Option(help="The task. Default: the one that fits the columns.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="The column of a field of the task. Repeat it.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the patient or lesion.")] = None,
    boxes: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The format of boxes, such as xyxy, if the data do not decide.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="tiny, a Hub name, or a folder of weights.")] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME|GB|none", help="The GPU to train on. Default: that of this machine.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write. It must not exist.", dir_okay=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept every proposal, without prompts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe for new data: its format, columns and task are recognized, and a model is proposed."""
    from toolkit.cli.progress import show_progress

    if data is None:
        data = _prompt("Training rows (a file, a folder or hub:NAME)")
    with show_progress():
        from toolkit.pipeline.new_recipe import NewData, inspect_source, propose_model, recipe_text

        rows = NewData(data, test, image_root, group, _columns(column or ()), boxes)
        source = inspect_source(rows)
        note(printable(f"{source.description}. Columns: {', '.join(source.columns)}"))
        reading = _choose_task(source, task, yes=yes)
        _check_columns(reading, rows)
        device = _choose_gpu(gpu, yes=yes)
        name = model or _answer("Model", propose_model(rows, reading.task, device), yes=yes)
        file = out or Path(_answer("Recipe", f"{_run_name(data)}.toml", yes=yes))
        text = recipe_text(_run_name(str(file)), rows, reading.task, name, file.parent)
        _write(file, text)
    if as_json:
        print_json({"file": file.absolute(), "task": reading.task, "columns": reading.columns, "model": name})
        return
    print(f"{file}: task {reading.task}, model {name}, {reading.usable:,} usable rows")
    for key, found in reading.columns.items():
        print(f"  {key}: column {printable(found)}")
    print(f"next: toolkit data inspect {file}, then toolkit run {file} --dry-run")


def _columns(given: "list[str] | tuple[str, ...]") -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (_, equals, column) in zip(given, pairs, strict=True) if not equals or not column]:
        raise typer.BadParameter(f"must be FIELD=COLUMN (got {wrong[0]!r})", param_hint="--column")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _choose_task(source: "Source", task: str | None, *, yes: bool) -> "Reading":
    """Return the reading of the chosen task, or of the only one that fits best.

    Raises:
        ArgumentError: the task is unknown, or several tasks fit equally well.
        DataProblems: no task can read the rows, or the chosen one cannot.
    """
    by_name = {one.task: one for one in source.readings}
    proposed = source.proposed
    if task is None and len(proposed) == 1:
        task = _answer(f"Task ({', '.join(by_name)})", proposed[0].task, yes=yes)
    if task is None and proposed:
        listed = "".join(f"\n  {one.task}: {_describe(one)}" for one in proposed)
        rule = f"the columns must fit one task best, and these tasks can read them:{listed}\n"
        raise ArgumentError("new.task_ambiguous", rule, place="--task", remedy="Choose one with --task.")
    if task is None:
        nearest = min(source.readings, key=lambda one: len(one.problems) - len(one.columns))
        raise _not_readable(nearest)
    if task not in by_name:
        remedy = f"Choose one of: {', '.join(by_name)}."
        raise ArgumentError("new.task_unknown", "must be a task", place="--task", value=task, remedy=remedy)
    if not by_name[task].others and (by_name[task].problems or not by_name[task].usable):
        raise _not_readable(by_name[task])
    return by_name[task]


def _not_readable(reading: "Reading") -> DataProblems:
    empty = Problem(
        "data.no_usable_rows", "at least one row must be usable", "--data", remedy="Choose another task or file."
    )
    problems = reading.problems or (empty,)
    rule = f"the task {reading.task} cannot read the rows"
    return DataProblems("new.rows_not_readable", rule, list(problems), place="--data")


def _describe(reading: "Reading") -> str:
    return ", ".join(f"{field} from {column}" for field, column in reading.columns.items())


def _check_columns(reading: "Reading", rows: "NewData") -> None:
    """Check that each field has one possible column. Raises ArgumentError with both columns otherwise."""
    open_fields = [(field, column) for field, column in reading.others if field not in rows.columns]
    if not open_fields:
        return
    listed = "".join(f"\n  {field}: {reading.columns.get(field)} or {other}" for field, other in open_fields)
    field, other = open_fields[0]
    raise ArgumentError(
        "new.column_ambiguous",
        f"each field must have one possible column, and these have two:{listed}\n",
        place="--column",
        remedy=f"Choose with --column {field}={reading.columns.get(field)} or --column {field}={other}.",
    )


def _choose_gpu(given: str | None, *, yes: bool) -> "Gpu | None":
    from toolkit.cli.plan import find_gpu_of
    from toolkit.planning import find_gpu

    here = find_gpu()
    if given is None and here is None:
        given = _answer("GPU to train on (a name, its GB, or none)", NO_GPU, yes=yes)
    if given is None:
        return here
    return None if given == NO_GPU else find_gpu_of(given)


def _answer(question: str, proposed: str, *, yes: bool) -> str:
    """Return the proposal, or what the user enters instead of it."""
    return proposed if yes else _prompt(question, proposed)


def _prompt(question: str, proposed: str | None = None) -> str:
    try:
        return str(typer.prompt(question, default=proposed, err=True))
    except typer.Abort as error:  # Ctrl-C, or the end of the input
        if sys.stdin.isatty():
            raise KeyboardInterrupt from error
        raise ArgumentError(
            "new.answer_missing",
            "the input must have an answer to each question",
            place=question,
            value="end of input",
            remedy="Give every answer as an option (`toolkit new --help`), or accept the proposals with --yes.",
        ) from error


def _run_name(source: str) -> str:
    """Return a name for the run: the file's, in the characters that a run may have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(source.rpartition(":")[2]).name.partition(".")[0]).strip("_.") or "new"


def _write(file: Path, text: str) -> None:
    """Write the recipe. Raises ArgumentError if the file exists."""
    from toolkit.runfolder import write_text

    if file.exists():
        rule, remedy = "must not exist, because no file is replaced", "Choose another file with --out."
        raise ArgumentError("new.file_exists", rule, place=file, remedy=remedy)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
