"""The evaluated rows of a run: samples, completions of each evaluation, and their scores."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

from toolkit.data.loading import load_data
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.errors import RunError, ToolkitError
from toolkit.evaluation.answers import read_reply, reply_of, score_answer
from toolkit.images import ImageStore
from toolkit.recipe import Recipe
from toolkit.reporting.finished_run import FinishedRun
from toolkit.runfolder import Record, read_lines, read_state
from toolkit.scoring.statistics import ScoredAnswer
from toolkit.tasks import TASKS

LINE_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "id": str,
    "completion": str,
    "truncated": bool,
    "problem": (str, NoneType),
}
"""Key of a line -> its type."""

CHANGED = "the data changed since the run"


@dataclass(frozen=True, slots=True)
class EvaluatedRows:
    """The rows of the last evaluation of a run.

    Attributes:
        task: the task. None: the recipe cannot be read.
        samples: sample id -> sample, for the evaluated rows. Empty: the data cannot be read.
        images: the store of the images. None: likewise.
        lines: label of an evaluation -> sample id -> its line in the predictions file, in the order of the file.
        reason: why there are no samples. Empty: there are.
    """

    task: Task | None
    samples: Mapping[str, Sample]
    images: ImageStore | None
    lines: Mapping[str, Mapping[str, Record]]
    reason: str = ""

    @property
    def last(self) -> str:
        """Return the label of the last evaluation."""
        return list(self.lines)[-1]

    @property
    def ids(self) -> list[str]:
        """Return the ids of the rows of the last evaluation."""
        return list(self.lines[self.last])

    def answer(self, label: str, name: str) -> tuple[Sample, Answer] | None:
        """Return a sample and its parsed completion. None: the sample or the completion is missing."""
        sample, line = self.samples.get(name), self.lines[label].get(name)
        if sample is None or line is None or self.task is None:
            return None
        return sample, read_reply(self.task, sample, reply_of(line))

    def scored(self, label: str, names: Iterable[str] | None = None) -> dict[str, ScoredAnswer]:
        """Return sample id -> scored completion of an evaluation, for these ids (default: all)."""
        wanted = self.lines[label] if names is None else names
        found = {name: pair for name in wanted if (pair := self.answer(label, name)) is not None}
        return {name: score_answer(self.task, *pair, by=()) for name, pair in found.items()} if self.task else {}


def evaluated_rows(run: FinishedRun) -> EvaluatedRows | None:
    """Return the rows of a run's evaluations. None: nothing was evaluated.

    Data that can no longer be read, or have changed, give rows without samples.

    Raises:
        RunError: a line of a predictions file is damaged, or the file is outside of the run.
    """
    found = run.evaluations or dict(list(run.others.items())[-1:])
    if not found:
        return None
    lines = {label: _lines(run, one.predictions) for label, one in found.items()}
    if run.recipe is None:
        return EvaluatedRows(None, {}, None, lines, "the recipe cannot be read")
    label, last = list(found.items())[-1]
    task = TASKS[run.recipe.dataset.task]
    try:
        samples, images = _samples(run, run.recipe, last.split, lines[label])
    except (ToolkitError, OSError) as error:
        reason = error.rule if isinstance(error, ToolkitError) else error.strerror or "a file cannot be read"
        return EvaluatedRows(task, {}, None, lines, f"the data cannot be read: {reason}")
    return EvaluatedRows(task, samples, images, lines, "" if samples else CHANGED)


def _lines(run: FinishedRun, name: str) -> dict[str, Record]:
    """Return sample id -> line of a predictions file. A run folder of others can name any file, and have any value."""
    file = Path(os.path.normpath(run.folder.path / name))
    if not file.is_relative_to(run.folder.path) or (file.exists() and not file.is_file()):
        rule, remedy = "the predictions must be a file of the run", "Restore the run folder."
        raise RunError("run.predictions_outside", rule, place=run.folder.path, value=name, remedy=remedy)
    found: dict[str, Record] = {}
    for number, line in enumerate(read_lines(file, LINE_KEYS), 1):
        if wrong := [key for key, kinds in LINE_KEYS.items() if not isinstance(line[key], kinds)]:
            rule, value = f"{', '.join(wrong)} must have the type that an evaluation writes", f"line {number}"
            raise RunError("run.line_damaged", rule, place=file, value=value, remedy="Restore the file.")
        found[line["id"]] = line
    return found


def _samples(
    run: FinishedRun, recipe: Recipe, split: str, lines: Mapping[str, Record]
) -> tuple[dict[str, Sample], ImageStore | None]:
    """Return the samples of a predictions file, and the store of their images. Empty: the data have changed."""
    folder = run.folder.path / "synthetic" if recipe.dataset.synthetic else None
    data = load_data(recipe, TASKS[recipe.dataset.task], folder)
    if read_state(run.folder).fingerprints.get("data", data.fingerprint) != data.fingerprint:
        return {}, None
    samples = getattr(data, split)
    found = {sample.id: sample for sample in samples if sample.id in lines}
    return found, ImageStore.from_recipe(recipe.images, recipe.model, [samples.origin.image_root])
