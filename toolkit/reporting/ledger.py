"""The ledger: what runs used, grouped by what they were for, as a conference's form on compute asks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import RecipeError, RunError
from toolkit.recipe import Recipe
from toolkit.runfolder import RunFolder, find_run
from toolkit.runfolder.usage import ComputeRecord, Start, Usage, read_compute, total
from toolkit.tasks import TASKS

FAILED = "failed or unfinished"
PURPOSES = ("training", "search", "ablation", "rehearsal", FAILED)
"""The headings. A run that never came to its end counts under the last one, whatever its recipe says."""

EVALUATIONS = "evaluate-"
BEFORE = "evaluate-before"


@dataclass(frozen=True, slots=True)
class RunUse:
    """One run: its record, and what its recipe says, None where this version cannot read it."""

    name: str
    recipe: Recipe | None
    record: ComputeRecord
    rows: Mapping[str, int]

    @property
    def finished(self) -> bool:
        """Whether `toolkit run` ever came to its end."""
        return any(start.command == "run" and start.outcome == "finished" for start in self.record.starts)

    @property
    def purpose(self) -> str:
        """One of ``PURPOSES``: that of the newest start."""
        own = self.record.starts[-1].purpose if self.record.starts else None
        if not self.record.starts and self.recipe is not None:
            own = self.recipe.run.purpose
        return own if own in PURPOSES and self.finished else FAILED

    @property
    def evaluations(self) -> Usage:
        """The evaluations that asked a trained model something; that of the model before training if there is no other.

        A model that does not know the form yet writes more or less than it does in use, and costs as much.
        """
        stages = self.record.stages().items()
        found = {name: used for name, used in stages if name.startswith(EVALUATIONS) and used.counts.answers}
        trained = [used for name, used in found.items() if name != BEFORE]
        return total(trained or found.values())


@dataclass(frozen=True, slots=True)
class Ledger:
    """Runs in the order of their names."""

    runs: tuple[RunUse, ...]

    @property
    def starts(self) -> list[Start]:
        """Every start of every run."""
        return [start for run in self.runs for start in run.record.starts]

    @property
    def used(self) -> Usage:
        """All runs together."""
        return total(run.record.used for run in self.runs)

    @property
    def damaged(self) -> int:
        """Lines of the records that cannot be read."""
        return sum(run.record.damaged for run in self.runs)

    @property
    def unrecorded(self) -> list[str]:
        """Runs without any record: they are in no sum."""
        return [run.name for run in self.runs if not run.record.starts]

    @property
    def copies(self) -> list[str]:
        """Runs that have a start of another run, as a copied folder has: it is in the sums twice."""
        having = Counter(name for run in self.runs for name in {start.id for start in run.record.starts})
        return [run.name for run in self.runs if any(having[start.id] > 1 for start in run.record.starts)]

    def by_purpose(self) -> dict[str, tuple[int, Usage]]:
        """Heading -> how many runs, and what they used; every heading is there."""
        found = {}
        for purpose in PURPOSES:
            runs = [run for run in self.runs if run.purpose == purpose and run.record.starts]
            found[purpose] = len(runs), total(run.record.used for run in runs)
        return found


def read_ledger(paths: Sequence[Path]) -> Ledger:
    """The ledger of run folders, and of the runs that lie in folders; one that is named twice counts once.

    Raises:
        RunError: a path is neither a run nor a folder with runs in it.
    """
    folders: dict[Path, RunFolder] = {}
    for path in paths:
        for run in _runs_in(path):
            folders[run.path.resolve()] = run
    return Ledger(tuple(sorted((_read(run) for run in folders.values()), key=lambda use: use.name)))


def _runs_in(path: Path) -> list[RunFolder]:
    if _is_run(path) or not path.is_dir():
        return [find_run(path)]
    inside = sorted(child for child in path.iterdir() if _is_run(child))
    if not inside:
        raise RunError(
            "run.none_in_folder",
            "must be a run folder or a folder that contains runs",
            place=path,
            remedy="Name run folders, or the folder that contains them, such as runs.",
        )
    return [find_run(child) for child in inside]


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() and (path / "recipe.toml").is_file()


def _read(run: RunFolder) -> RunUse:
    try:
        recipe = run.recipe(TASKS)
    except RecipeError:  # of another version; its hours count all the same
        recipe = None
    return RunUse(run.name, recipe, read_compute(run.compute_file), _rows(run))


def _rows(run: RunFolder) -> dict[str, int]:
    """Split -> rows; none where they are not read yet or the record is damaged: then the report says that of them."""
    try:
        return {str(split): int(number) for split, number in run.record("data")["rows"].items()}
    except (RunError, ValueError, KeyError, TypeError, AttributeError):
        return {}
