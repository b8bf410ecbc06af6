"""Usage of several runs, grouped by purpose, as the compute checklists of conferences require."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.result import DataResult
from toolkit.errors import RecipeError, RunError
from toolkit.evaluation.results import BEFORE, EVALUATE, evaluation_stage
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, check_schema, find_run, is_run
from toolkit.runfolder.usage import ComputeRecord, Session, Usage, read_compute, total
from toolkit.tasks import TASKS

FAILED = "failed or unfinished"
PURPOSES = ("training", "search", "ablation", "dry_run", FAILED)
"""Purposes of runs. A run that did not finish counts under the last one, regardless of its recipe."""


@dataclass(frozen=True, slots=True)
class RunUse:
    """Usage of one run.

    Attributes:
        name: the name of the run.
        recipe: its recipe. None: this version cannot read it.
        record: its usage record.
        rows: split -> number of rows. Empty: not known.
        folder: its run folder.
        readable: whether the run is of this version. Otherwise only its usage is known.
    """

    name: str
    recipe: Recipe | None
    record: ComputeRecord
    rows: Mapping[str, int]
    folder: RunFolder
    readable: bool = True

    @property
    def finished(self) -> bool:
        """Return whether `toolkit run` has finished."""
        return any(session.command == "run" and session.outcome == "finished" for session in self.record.sessions)

    @property
    def purpose(self) -> str:
        """Return one of ``PURPOSES``, by the newest session."""
        own = self.record.sessions[-1].purpose if self.record.sessions else None
        if not self.record.sessions and self.recipe is not None:
            own = self.recipe.run.purpose
        return own if own in PURPOSES and self.finished else FAILED

    @property
    def evaluations(self) -> Usage:
        """Return the usage of the evaluations of trained models, or of the base model if there is no other.

        The base model may not know the answer format, so the length of its completions is not typical.
        """
        stages = self.record.stages().items()
        found = {name: used for name, used in stages if name.startswith(EVALUATE) and used.counts.answers}
        trained = [used for name, used in found.items() if name != evaluation_stage(BEFORE)]
        return total(trained or found.values())


@dataclass(frozen=True, slots=True)
class Ledger:
    """Runs, sorted by name."""

    runs: tuple[RunUse, ...]

    @property
    def sessions(self) -> list[Session]:
        """Return all sessions of all runs."""
        return [session for run in self.runs for session in run.record.sessions]

    @property
    def used(self) -> Usage:
        """Return the usage of all runs."""
        return total(run.record.used for run in self.runs)

    @property
    def damaged(self) -> int:
        """Return the number of corrupt lines in the records."""
        return sum(run.record.damaged for run in self.runs)

    @property
    def unrecorded(self) -> list[str]:
        """Return the runs without a usage record, which no sum includes."""
        return [run.name for run in self.runs if not run.record.sessions]

    @property
    def other_versions(self) -> list[str]:
        """Return the runs of another version of the toolkit, of which only the usage is known."""
        return [run.name for run in self.runs if not run.readable]

    @property
    def copies(self) -> list[str]:
        """Return the runs that have a session of another run, because one folder is a copy. Sums count it twice."""
        having = Counter(name for run in self.runs for name in {session.id for session in run.record.sessions})
        return [run.name for run in self.runs if any(having[session.id] > 1 for session in run.record.sessions)]

    def by_purpose(self) -> dict[str, tuple[int, Usage]]:
        """Return purpose -> number of runs and their usage, for all purposes."""
        found = {}
        for purpose in PURPOSES:
            runs = [run for run in self.runs if run.purpose == purpose and run.record.sessions]
            found[purpose] = len(runs), total(run.record.used for run in runs)
        return found


def read_ledger(paths: Sequence[Path]) -> Ledger:
    """Return the usage of run folders, and of the runs in folders. A run that is given twice counts once.

    Raises:
        RunError: a path is neither a run of this version nor a folder that contains runs.
    """
    return Ledger(tuple(sorted(map(_read, find_runs(paths)), key=lambda use: use.name)))


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Return run folders, and the runs in folders, in the order of the paths. A run that is given twice counts once.

    Raises:
        RunError: as in ``read_ledger``.
    """
    folders: dict[Path, RunFolder] = {}
    for path in paths:
        for run in _runs_in(path):
            folders.setdefault(run.path.resolve(), run)
    return list(folders.values())


def _runs_in(path: Path) -> list[RunFolder]:
    if is_run(path) or not path.is_dir():
        return [find_run(path)]
    inside = sorted(child for child in path.iterdir() if is_run(child))
    if not inside:
        raise RunError(
            "run.none_in_folder",
            "must be a run folder or a folder that contains runs",
            place=path,
            remedy="Name run folders, or the folder that contains them, such as runs.",
        )
    # A run of another version counts too: leaving it out would understate the usage.
    return [RunFolder(child.absolute()) for child in inside]


def _read(run: RunFolder) -> RunUse:
    record = read_compute(run.compute_file)
    try:
        check_schema(run)
    except RunError:
        return RunUse(run.name, None, record, {}, run, readable=False)
    try:
        recipe = run.recipe(TASKS)
    except RecipeError:  # such as a custom task whose file is missing
        recipe = None
    return RunUse(run.name, recipe, record, _rows(run), run)


def _rows(run: RunFolder) -> dict[str, int]:
    """Return split -> number of rows. Empty: the data stage has not finished, or its result is damaged."""
    try:
        return dict(run.result("data", DataResult).rows)
    except RunError:
        return {}
