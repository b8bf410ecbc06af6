"""The runs in a folder: state, task, model and main score of each, read without loading a model."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from toolkit.errors import RunError, ToolkitError
from toolkit.models.model_paths import public_name
from toolkit.pipeline.imagegen import ImagegenRunResults
from toolkit.pipeline.run import stage_calls
from toolkit.pipeline.run_results import collect_results, read_results
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Recipe
from toolkit.recipe.user_code import USER_CODE, without_user_code
from toolkit.runfolder import RunFolder, find_run, from_json, is_locked, read_json, read_state
from toolkit.scoring.statistics import Estimate
from toolkit.tasks import TASKS

_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:[A-Z]+: )?(.*)", re.MULTILINE)
_LOG_BYTES = 65_536
"""End of a log in which its last line is searched."""


class RunStatus(StrEnum):
    """How far a run is. A process that was killed leaves an interrupted run, because it cannot log an error."""

    FINISHED = "finished"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class MainScore:
    """The main score of the last evaluation: its name, the label of its row, and its value with interval and n."""

    name: str
    label: str
    value: Estimate


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run. Fields that cannot be read are None.

    Attributes:
        folder: the run folder.
        status: how far the run is.
        started: start of its last session.
        task: the task, or ``imagegen``.
        model: the base model.
        score: its main score.
        problem: why the run is damaged, with the code of the error.
    """

    folder: Path
    status: RunStatus
    started: str | None = None
    task: str | None = None
    model: str | None = None
    score: MainScore | None = None
    problem: str | None = None


def list_runs(folder: Path) -> tuple[ListedRun, ...]:
    """Return the runs in a folder, the last started first. Runs that cannot be read are listed as damaged.

    Raises:
        RunError: it is not a folder.
    """
    if not folder.is_dir():
        remedy = "Name the folder that contains runs. `toolkit run` creates runs in the working directory."
        raise RunError("run.folder_missing", "must be a folder with runs", place=folder, remedy=remedy)
    found = [_describe(path) for path in _runs_in(folder.absolute())]
    return tuple(sorted(found, key=lambda one: one.started or "", reverse=True))


def _runs_in(folder: Path) -> Iterator[Path]:
    """Yield the folders that have a file of a run, also if its other files are missing."""
    for path in (folder, *sorted(folder.iterdir())):
        if not path.name.startswith(".") and any((path / name).is_file() for name in ("run.json", "recipe.toml")):
            yield path


def _describe(path: Path) -> ListedRun:
    try:
        run = find_run(path)
        if custom := _custom_task(run):
            return _describe_custom(run, *custom)
        with without_user_code():
            recipe = run.recipe(TASKS)
        started = read_state(run).sessions[-1].started
        status = _status(run, recipe)
        if recipe.imagegen is not None:
            model, task = recipe.imagegen.generator.model, "imagegen"
            score = _judge_score(run)
        else:
            model, task = recipe.model.name, recipe.dataset.task
            score = _main_score(run, status)
    except (ToolkitError, OSError, ValueError, KeyError) as error:
        code = f" [{error.code}]" if isinstance(error, ToolkitError) else ""
        return ListedRun(path, RunStatus.DAMAGED, problem=f"{str(error).splitlines()[0]}{code}")
    return ListedRun(path, status, started, task, model, score)


def _custom_task(run: RunFolder) -> tuple[str, str] | None:
    """Return the custom task and the model of a run. None: the task is one of the package.

    A list shows runs of others too, so the code of the task does not run, and the recipe cannot be loaded.
    """
    try:
        table = tomllib.loads(run.recipe_file.read_text(encoding="utf-8"))
        task, model = (table.get(section, {}).get(key, "") for section, key in (("data", "task"), ("model", "name")))
    except (ValueError, AttributeError):  # loading the recipe reports where it is damaged
        return None
    return (task, str(model)) if isinstance(task, str) and USER_CODE.fullmatch(task) else None


def _describe_custom(run: RunFolder, task: str, model: str) -> ListedRun:
    status = _status(run, None)
    score = _main_score(run, status) if status is RunStatus.FINISHED else None
    return ListedRun(run.path, status, read_state(run).sessions[-1].started, public_name(task), model, score)


def _status(run: RunFolder, recipe: Recipe | None) -> RunStatus:
    """Return how far a run is. Without a recipe, a run with results.json counts as finished."""
    if is_locked(run.path):
        return RunStatus.RUNNING
    # The stages of image generation write results.json after the last of them.
    stages = (
        [] if recipe is None or recipe.imagegen is not None else [call.name for call in stage_calls(recipe, STAGES)]
    )
    if run.results_file.is_file() and all(map(run.is_done, stages)):
        return RunStatus.FINISHED
    return RunStatus.FAILED if _ended_with_error(run.log_file) else RunStatus.INTERRUPTED


def _ended_with_error(log: Path) -> bool:
    """Return whether the last line of the log is an error other than a signal."""
    if not log.is_file():
        return False
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
        text = stream.read().decode("utf-8", "replace")
    lines = list(_LOG_LINE.finditer(text))
    last = text[lines[-1].start(1) :] if lines else ""
    return last.startswith(("stopped: ", "stopped by an unexpected")) and "[run.interrupted]" not in last


def _main_score(run: RunFolder, status: RunStatus) -> MainScore | None:
    found = read_results(run.path) if status is RunStatus.FINISHED else collect_results(run)
    return MainScore(found.score, found.rows[-1].label, found.rows[-1].estimate) if found.rows else None


def _judge_score(run: RunFolder) -> MainScore | None:
    if not run.results_file.is_file():
        return None
    found = from_json(ImagegenRunResults, read_json(run.results_file)).imagegen
    return MainScore("judge score", found.rows[-1].label, found.rows[-1].judge) if found.rows else None
