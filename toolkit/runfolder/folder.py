"""The run folder: paths, records of finished stages, and metrics of one run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import RunError, warn
from toolkit.recipe import Recipe, RecipeTask, load_recipe
from toolkit.runfolder.files import (
    Value,
    append_line,
    from_json,
    read_json,
    read_lines,
    read_saved,
    write_json,
    write_lines,
)
from toolkit.runfolder.manifest import check_weights
from toolkit.runfolder.versions import now

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 2
"""Version of the files of a run: run.json, results.json and the results of its stages. It changes with their fields."""

TRAINING_STAGES = ("sft", "dpo", "grpo")
"""Stages that train a model, in the order in which they run."""

EXPORT = "export"
"""The stage that exports the model."""

_RESTORE = "Restore the files, or start over with --fresh (the old folder is kept under another name)."

Record = dict[str, Any]
"""A JSON object of a file whose keys depend on the task, the recipe or the libraries, such as metrics.jsonl."""


@dataclass(frozen=True, slots=True)
class _Done:
    """The content of ``done.json``."""

    stage: str
    finished: str
    result: Record


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk.

    ::

        recipe.toml            resolved recipe with all defaults and absolute paths
        run.json               seed, fingerprints of the inputs, and versions of each session
        log.txt                log with times
        metrics.jsonl          one line for each logged optimizer step: stage, step, time, figures
        compute.jsonl          usage of each session: time, memory, energy, tokens
        plan.json              plan of the run, as `toolkit plan --json` prints it
        results.json           tables of scores, and results of all finished stages
        report.html            the report of the run, written at its end
        synthetic/             synthetic dataset, if the recipe generates one
        stages/<name>/         files of a stage: checkpoints, weights, predictions
        stages/<name>/sizes.json   batch sizes of a training stage after an out-of-memory error
        stages/<name>/done.json    result of a finished stage, written last

    The process that uses the folder holds the lock ``.<name>.lock`` beside it.
    """

    path: Path

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        """Return the path of ``recipe.toml``."""
        return self.path / "recipe.toml"

    @property
    def run_file(self) -> Path:
        """Return the path of ``run.json``."""
        return self.path / "run.json"

    @property
    def log_file(self) -> Path:
        """Return the path of ``log.txt``."""
        return self.path / "log.txt"

    @property
    def metrics_file(self) -> Path:
        """Return the path of ``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def compute_file(self) -> Path:
        """Return the path of ``compute.jsonl``."""
        return self.path / "compute.jsonl"

    @property
    def plan_file(self) -> Path:
        """Return the path of ``plan.json``."""
        return self.path / "plan.json"

    @property
    def results_file(self) -> Path:
        """Return the path of ``results.json``."""
        return self.path / "results.json"

    @property
    def report_file(self) -> Path:
        """Return the path of ``report.html``."""
        return self.path / "report.html"

    def plan(self) -> Record:
        """Return the content of ``plan.json``. Empty: the run has no plan.

        The plan only adds estimates to reports, so a corrupt file is a warning and counts as no plan.
        """
        if not self.plan_file.is_file():
            return {}
        plan = _read_object(self.plan_file)
        if plan is None or not all(isinstance(plan.get(key) or {}, dict) for key in ("gpu", "memory", "time")):
            plan = None
            rule, remedy = "plan.json should be valid", "Run the recipe again, which writes a new plan."
            warn("run.plan_damaged", rule, place=self.plan_file, value="no estimates", remedy=remedy)
        return plan or {}

    def recipe(self, tasks: Mapping[str, RecipeTask]) -> Recipe:
        """Return the resolved recipe of the run.

        Args:
            tasks: as ``load_recipe``.

        Raises:
            RecipeError: this version of the toolkit cannot read the recipe.
        """
        return load_recipe(self.recipe_file, tasks=tasks)

    def stage_folder(self, stage: str) -> Path:
        """Return ``stages/<stage>``. The folder is created if it does not exist."""
        folder = self.path / "stages" / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str) -> bool:
        """Return whether the stage has finished. Raises RunError if its done.json is not a file."""
        file = self.path / "stages" / stage / "done.json"
        if file.is_file():
            return True
        if file.is_symlink() or file.exists():
            raise self._damaged(stage, "it is not a file")
        return False

    def mark_done(self, stage: str, result: "DataclassInstance") -> None:
        """Write the result of a stage, which marks the stage as finished."""
        write_json(self._done_file(stage), {"stage": stage, "finished": now(), "result": result})

    def result(self, stage: str, kind: type[Value]) -> Value:
        """Return the result of a finished stage.

        Args:
            stage: the stage.
            kind: the dataclass of its result, such as ``EvaluationResult``.

        Raises:
            RunError: the stage has not finished, or a field of its result is missing, unknown or of another type.
        """
        result = self._read_done(stage).result
        try:
            return from_json(kind, result)
        except ValueError as error:
            raise self._damaged(stage, str(error)) from error

    def _done_file(self, stage: str) -> Path:
        return self.stage_folder(stage) / "done.json"

    def _read_done(self, stage: str) -> _Done:
        """Return the content of ``done.json``. Raises RunError as ``result``."""
        if not self.is_done(stage):
            rule, remedy = "the stage must have finished", "Run the recipe first."
            raise RunError("run.stage_not_finished", rule, place=self.path, value=stage, remedy=remedy)
        try:
            return from_json(_Done, read_json(self._done_file(stage)))
        except (OSError, ValueError) as error:
            raise self._damaged(stage, str(error)) from error

    def _damaged(self, stage: str, problem: str) -> RunError:
        rule = f"the result of the stage {stage} must be complete and of this version of the toolkit"
        return RunError("run.stage_damaged", rule, place=self._done_file(stage), value=problem, remedy=_RESTORE)

    def finished_stages(self) -> list[str]:
        """Return the finished stages, in the order in which they finished."""
        files = sorted(self.path.glob("stages/*/done.json"), key=lambda file: file.lstat().st_mtime_ns)
        # A copied folder has new modification times, so the time in the file takes precedence.
        return sorted((file.parent.name for file in files), key=lambda stage: self._read_done(stage).finished)

    def weights_folder(self, stage: str) -> Path:
        """Return the folder of the weights of a training stage: an adapter, or the model after full fine-tuning."""
        return self.path / "stages" / stage / "weights"

    def trained_weights(self) -> Path | None:
        """Return the weights of the last finished training stage. None: no training stage has finished.

        Raises:
            RunError: the weights do not exist.
        """
        done = [self.weights_folder(stage) for stage in TRAINING_STAGES if self.is_done(stage)]
        if done and not done[-1].is_dir():
            rule = "the weights of a finished stage must exist"
            raise RunError("run.weights_missing", rule, place=done[-1], remedy=_RESTORE)
        return done[-1] if done else None

    def relative(self, path: Path) -> str:
        """Return ``path`` as records store it: relative if the path is in the run, so that a run can be moved."""
        return str(path.relative_to(self.path) if path.is_relative_to(self.path) else path)

    def log_metrics(self, stage: str, step: int, figures: Mapping[str, object]) -> None:
        """Append one line to ``metrics.jsonl``."""
        append_line(self.metrics_file, {"stage": stage, "step": step, "time": now(), **figures})

    def remove_metrics(self, stage: str, step: int) -> int:
        """Remove the metrics of a stage after ``step``, where training resumes. Return the number of lines removed.

        Raises:
            RunError: a line is damaged.
        """
        lines = self._metric_lines()
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if len(kept) < len(lines):
            write_lines(self.metrics_file, kept)
        return len(lines) - len(kept)

    def metrics(self) -> list[Record]:
        """Return one record for each stage and optimizer step, in the order of their first lines.

        If a step was repeated after an interruption, its later line counts. Figures that were logged separately for one
        step are merged.

        Raises:
            RunError: a line is damaged.
        """
        steps: dict[tuple[str, int], Record] = {}
        for line in self._metric_lines():
            steps.setdefault((line["stage"], line["step"]), {}).update(line)
        return list(steps.values())

    def _metric_lines(self) -> list[Record]:
        """Return the lines of ``metrics.jsonl``. Raises RunError as ``metrics``."""
        lines = read_lines(self.metrics_file, ("stage", "step"))
        for number, line in enumerate(lines, 1):
            if not isinstance(line["stage"], str) or type(line["step"]) is not int:
                raise RunError(
                    "run.line_damaged",
                    "stage must be text and step a number",
                    place=f"{self.metrics_file}, metric {number}",
                    value=(line["stage"], line["step"]),
                    remedy="Restore the file, or remove the line.",
                )
        return lines


def find_run(path: Path | str) -> RunFolder:
    """Return the run in ``path`` for reading.

    Raises:
        RunError: the folder is not a run, or a run of another version of the toolkit.
    """
    run = RunFolder(Path(path).absolute())
    if not is_run(run.path):
        raise RunError(
            "run.not_a_run_folder",
            "a run folder must have run.json and recipe.toml",
            place=path,
            remedy="Name a folder that `toolkit run` created, such as runs/quickstart.",
        )
    check_schema(run)
    return run


def locate_weights(path: Path) -> tuple[RunFolder, Path | None]:
    """Return the run that contains ``path``, and ``path`` itself. None as the second value: the run's own weights.

    Raises:
        RunError: the path is not inside a run.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        if is_run(folder):
            return find_run(folder), None if folder == path else path
    return find_run(path), None


def check_schema(run: RunFolder) -> None:
    """Check that the files of a run are of this version.

    Raises:
        RunError: run.json has another ``schema_version``, or cannot be read.
    """
    found = read_state_file(run).get("schema_version", "missing")
    if type(found) is not int or found != SCHEMA_VERSION:  # 2.0 is equal to 2
        raise RunError(
            "run.schema_version",
            f"schema_version in run.json must be {SCHEMA_VERSION}, that of this version of the toolkit",
            place=run.path,
            value=found,
            remedy=_reuse(run),
        )


def read_state_file(run: RunFolder) -> Record:
    """Return the content of run.json, of any version.

    Raises:
        RunError: the file is not a JSON object.
    """
    state = _read_object(run.run_file)
    if state is None:
        raise RunError("run.state_damaged", "run.json must be valid", place=run.run_file, remedy=_RESTORE)
    return state


def _read_object(file: Path) -> Record | None:
    """Return the content of a JSON file. None: it is not a JSON object."""
    found = read_saved(file)
    return found if isinstance(found, dict) else None


def _reuse(run: RunFolder) -> str:
    """Return the command that starts a new run from the last trained weights of a run of another version."""
    done = [stage for stage in TRAINING_STAGES if run.is_done(stage) and _has_weights(run.weights_folder(stage))]
    if not done:
        return "Start again with `toolkit run RECIPE --fresh`. The old folder is kept under another name."
    weights = shlex.quote(f"model.adapter={run.weights_folder(done[-1])}")
    return f"Start a new run from its weights with `toolkit run RECIPE --set run.name=NEW --set {weights}`."


def current_weights(run: RunFolder, recipe: Recipe) -> Path | None:
    """Return the weights that the next stage starts from.

    These are the run's last trained weights, or the adapter of the recipe. None: the base model.

    Raises:
        RunError: weights of a run are missing or damaged, or ``model.adapter`` contains no weights.
    """
    weights, adapter = run.trained_weights(), recipe.model.adapter
    if weights is not None:
        check_weights(weights, own=True)
        return weights
    return find_weights(adapter) if adapter else None


def find_weights(path: Path) -> Path:
    """Return the folder of the weights: the last trained weights if ``path`` is a run, otherwise ``path`` itself.

    Raises:
        RunError: ``path`` is neither a run with a finished training stage nor a folder with weights, or the weights are
            damaged.
    """
    if is_run(path):
        weights = find_run(path).trained_weights()
        if weights is None:
            rule = "at least one training stage of the run must have finished"
            raise RunError("run.no_stage_finished", rule, place=path, remedy="Finish the run first.")
        check_weights(weights, own=True)
        return weights
    if not _has_weights(path):
        raise RunError(
            "run.folder_without_weights",
            "the folder must be a run or have weights (run.json, adapter_config.json or config.json)",
            place=path,
            remedy="Name another folder.",
        )
    check_weights(path)
    return path


def is_run(path: Path) -> bool:
    """Return whether ``path`` is a run folder. A folder with recipe.toml alone may belong to the user."""
    run = RunFolder(path)
    return run.run_file.is_file() and run.recipe_file.is_file()


def _has_weights(path: Path) -> bool:
    return any((path / name).is_file() for name in ("adapter_config.json", "config.json"))
