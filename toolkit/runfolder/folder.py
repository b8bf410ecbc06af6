"""The run folder: everything that a run writes, laid out so that it can be resumed, moved and read by eye."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import RunError
from toolkit.recipe import Recipe, RecipeTask, load_recipe
from toolkit.runfolder.files import append_line, read_json, read_lines, write_json, write_lines
from toolkit.runfolder.versions import now

TRAINING_STAGES = ("sft", "grpo")
"""The stages that leave weights, in the order in which they run."""

EXPORT = "export"
"""The stage that writes weights for other programs."""

_GONE = "Restore them, or start over with --fresh (the old folder is kept under another name)."

Record = dict[str, Any]
"""What a stage leaves for the results: plain JSON, paths relative to the run folder."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk.

    ::

        recipe.toml            the resolved recipe: every default written out, absolute paths
        run.json               seed, fingerprints of what goes in, and versions for each time it was started
        log.txt                what was said, with the time
        metrics.jsonl          one line a training step: stage, step, time, and the figures
        compute.jsonl          what each start used: time, memory, energy, tokens
        plan.json              what the run was expected to need, as `toolkit plan --json` tells it
        results.json           the records of all finished stages and the table of results
        phantom/               practice data, if the recipe asks for them
        stages/<name>/         what a stage keeps: checkpoints, weights, predictions
        stages/<name>/sizes.json   the sizes of a training stage after an out-of-memory error
        stages/<name>/done.json    its record, written last: a stage is finished when this file is there

    Beside the folder stands ``.<name>.lock``, held by the process that works in it.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        """``recipe.toml``."""
        return self.path / "recipe.toml"

    @property
    def run_file(self) -> Path:
        """``run.json``."""
        return self.path / "run.json"

    @property
    def log_file(self) -> Path:
        """``log.txt``."""
        return self.path / "log.txt"

    @property
    def metrics_file(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def compute_file(self) -> Path:
        """``compute.jsonl``."""
        return self.path / "compute.jsonl"

    @property
    def plan_file(self) -> Path:
        """``plan.json``."""
        return self.path / "plan.json"

    @property
    def results_file(self) -> Path:
        """``results.json``."""
        return self.path / "results.json"

    def recipe(self, tasks: Mapping[str, RecipeTask]) -> Recipe:
        """The resolved recipe that the run was made with.

        Args:
            tasks: as ``load_recipe``.

        Raises:
            RecipeError: this version of the toolkit cannot read it.
        """
        return load_recipe(self.recipe_file, tasks=tasks)

    def stage_folder(self, stage: str) -> Path:
        """``stages/<stage>``, which is made if it is not there."""
        folder = self.path / "stages" / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str) -> bool:
        """Whether the stage has finished."""
        return (self.path / "stages" / stage / "done.json").is_file()

    def mark_done(self, stage: str, record: Mapping[str, object]) -> None:
        """Keep the stage's record; from now on the stage is finished."""
        write_json(self.stage_folder(stage) / "done.json", {"stage": stage, "finished": now(), "record": record})

    def record(self, stage: str) -> Record:
        """What the stage left.

        Raises:
            RunError: the stage has not finished.
        """
        if not self.is_done(stage):
            rule, remedy = "the stage must have finished", "Run the recipe first."
            raise RunError("run.stage_not_finished", rule, place=self.path, value=stage, remedy=remedy)
        record: Record = read_json(self.stage_folder(stage) / "done.json")["record"]
        return record

    def finished_stages(self) -> list[str]:
        """The stages that have finished, in the order in which they did."""
        files = sorted(self.path.glob("stages/*/done.json"), key=lambda file: file.stat().st_mtime_ns)
        # A copied folder has new times of modification, so the time in the file goes first.
        return [file.parent.name for file in sorted(files, key=lambda file: str(read_json(file)["finished"]))]

    def weights_folder(self, stage: str) -> Path:
        """Where a training stage puts its adapter (or, after full fine-tuning, its whole model)."""
        return self.path / "stages" / stage / "weights"

    def trained_weights(self) -> Path | None:
        """The weights of the last training stage that has finished; None before the first.

        Raises:
            RunError: they are gone.
        """
        done = [self.weights_folder(stage) for stage in TRAINING_STAGES if self.is_done(stage)]
        if done and not done[-1].is_dir():
            rule = "the weights of a finished stage must exist"
            raise RunError("run.weights_missing", rule, place=done[-1], remedy=_GONE)
        return done[-1] if done else None

    def relative(self, path: Path) -> str:
        """``path`` as records name it: inside the run its place there, so that a run can be moved."""
        return str(path.relative_to(self.path) if path.is_relative_to(self.path) else path)

    def log_metrics(self, stage: str, step: int, figures: Mapping[str, object]) -> None:
        """Add one line to ``metrics.jsonl``."""
        append_line(self.metrics_file, {"stage": stage, "step": step, "time": now(), **figures})

    def forget_metrics(self, stage: str, step: int) -> int:
        """Remove the lines of a stage after ``step``, which is trained again from there; return their number."""
        lines = read_lines(self.metrics_file)
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if len(kept) < len(lines):
            write_lines(self.metrics_file, kept)
        return len(lines) - len(kept)

    def metrics(self) -> list[Record]:
        """One record for each stage and step, in the order of their first lines.

        A step that was run twice, since the run was interrupted after its last checkpoint, counts with its later line;
        figures that were logged apart for one step stand together.
        """
        steps: dict[tuple[str, int], Record] = {}
        for line in read_lines(self.metrics_file):
            steps.setdefault((line["stage"], line["step"]), {}).update(line)
        return list(steps.values())


def find_run(path: Path | str) -> RunFolder:
    """The run in ``path``, to read from.

    Raises:
        RunError: no run is there.
    """
    run = RunFolder(Path(path).absolute())
    if not _is_run(run):
        raise RunError(
            "run.not_a_run_folder",
            "a run folder must have run.json and recipe.toml",
            place=path,
            remedy="Name the folder that `toolkit run` made, such as runs/quickstart.",
        )
    return run


def current_weights(run: RunFolder, recipe: Recipe) -> Path | None:
    """What a stage goes on from: the run's last trained weights, else the recipe's adapter, else None, the base model.

    Raises:
        RunError: ``model.adapter`` holds no weights.
    """
    adapter = recipe.model.adapter
    return run.trained_weights() or (find_weights(adapter) if adapter else None)


def find_weights(path: Path) -> Path:
    """The folder of weights that ``path`` means: a run's last trained ones, or an adapter's or model's own folder.

    Raises:
        RunError: neither a run that has trained nor a folder of weights.
    """
    if _is_run(RunFolder(path)):
        weights = RunFolder(path).trained_weights()
        if weights is None:
            rule = "at least one training stage of the run must have finished"
            raise RunError("run.no_stage_finished", rule, place=path, remedy="Finish the run first.")
        return weights
    if not any((path / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise RunError(
            "run.folder_without_weights",
            "the folder must be a run or have weights (run.json, adapter_config.json or config.json)",
            place=path,
            remedy="Name another folder.",
        )
    return path


def _is_run(run: RunFolder) -> bool:
    # recipe.toml alone may be a user's own file.
    return run.run_file.is_file() and run.recipe_file.is_file()
