"""Predict every row of a file, or every image of a folder, and write a table of the answers.

Every prediction is a flushed line of a hidden file beside the output, so that an interrupted prediction resumes.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolkit.data import RowCount
from toolkit.data.placeholders import prompt_turns
from toolkit.data.result import DataResult
from toolkit.data.sample import Answer, Sample, rows_of_images
from toolkit.errors import DataError, ImageError, RunError, list_places, warn
from toolkit.evaluation.answers import Reply, read_reply, reply_of
from toolkit.evaluation.generate import (
    Completer,
    file_state,
    is_whole_model,
    weights_identity,
)
from toolkit.evaluation.predict import PREDICT, task_settings
from toolkit.evaluation.unlabelled_rows import Constants, UnlabelledRows, read_unlabelled_rows
from toolkit.images import ImagePolicy, ImageStore, scan
from toolkit.images.ref import ImageRef
from toolkit.models import Backend
from toolkit.models.backend import Completion
from toolkit.models.image_sizes import ProcessorSizes
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe, changed_keys, load_recipe
from toolkit.runfolder import (
    Progress,
    Record,
    RunFolder,
    StopRequest,
    append_lines,
    check_free,
    claim_file,
    csv_text,
    current_weights,
    has_text,
    no_progress,
    read_lines,
    remove_partial_line,
    write_text,
)
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS, Task

SUFFIXES = (".csv", ".jsonl")
LINE_KEYS = ("id", "completion", "truncated")
COLUMNS, PROBABILITIES = ("id", "image", "completion", "problem", "truncated"), "probabilities"
"""First columns of the table, and the key of class probabilities in a line."""

UNREADABLE = "an image cannot be read"
"""Problem of a row with an unreadable image."""

SETTABLE = ("data.columns", "data.max_dropped", "images.unreadable", "evaluate.batch_size")
"""Keys of the recipe that a prediction may change. Prompts and readable images stay those of training."""

SHOWN = 5
"""Unreadable images that a warning lists."""


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Input and output of a prediction.

    Attributes:
        source: a source of rows in any format, a folder of images, or one image.
        out: the table to write: .csv or .jsonl.
        image_root: the folder of relative image paths. None: that of the source.
        constants: question, options and context of every row.
        force: rename an existing ``out`` to ``NAME.old-1`` instead of raising an error.
        settings: ``--set`` values for keys of ``SETTABLE``.
    """

    source: Path
    out: Path
    image_root: Path | None = None
    constants: Constants = field(default_factory=Constants)
    force: bool = False
    settings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class RowPredictions:
    """The result of a prediction.

    Attributes:
        out: the written table.
        rows: number of rows in it.
        problems: why completions have no answer -> number of rows.
        truncated: completions that reached the token limit.
        dropped: rows of the source that are not in the table.
    """

    out: Path
    rows: int
    problems: Mapping[str, int]
    truncated: int
    dropped: tuple[RowCount, ...]


def predict_rows(
    run: RunFolder,
    request: RowsRequest,
    stop: StopRequest,
    progress: Progress = no_progress,
    *,
    weights: Path | None = None,
    backend: Backend | None = None,
) -> RowPredictions:
    """Predict every row with greedy decoding. Prompts and images are processed as in training.

    Args:
        run: a run. Its last trained weights are used, or its base model if nothing was trained.
        request: rows and output.
        stop: checked after every batch.
        progress: called with the progress.
        weights: weights to use instead of the run's. See ``predict``.
        backend: loads the model. Default: that of the recipe.

    Raises:
        DataError: the rows do not fit the recipe, or no row is usable.
        ImageError: images cannot be read, and the recipe has ``unreadable = "stop"``.
        RunError: ``out`` exists or cannot be written, or a setting is not one of ``SETTABLE``.
        Interrupted: after a signal. The same call resumes.
    """
    recipe = _recipe(run, request.settings)
    _check_out(request)
    settings = task_settings(run, recipe)
    whole = run.result("data", DataResult).whole if run.is_done("data") else ()
    rows = read_unlabelled_rows(recipe, settings, request.source, request.image_root, request.constants, whole)
    for note in rows.notes:
        warn(note.code, note.rule, place=note.place, value=note.value, remedy=note.remedy)
    images = ImageStore.from_recipe(recipe.images, recipe.model, rejection=ProcessorSizes(recipe.model))
    prompts = Prompts.of(recipe, images)
    unreadable = _scan_images(recipe, rows, images, stop, progress)
    own = current_weights(run, recipe)
    partial = request.out.with_name(f".{request.out.name}.{_identity(recipe, weights or own, rows, request)}.partial")
    remove_partial_line(partial)
    known = {line["id"]: reply_of(line) for line in read_lines(partial, LINE_KEYS)}
    if any(sample.id not in known for sample in rows.samples):
        check_free(request.out, force=request.force)
        with recording(run, recipe.run, PREDICT) as recorder, recorder.stage(PREDICT):
            completer = Completer.load(recipe, prompts, weights or own, backend, stored=is_whole_model(weights))
            skipped = unreadable if recipe.images.unreadable == "skip" else frozenset()
            _generate(_Job(recipe, completer, partial, skipped, stop, progress), rows.samples, known)
    result = _write(prompts.task, rows, known, request)
    for other in _saved_predictions(request.out):
        other.unlink()
    return result


def _recipe(run: RunFolder, settings: Sequence[str]) -> Recipe:
    """Return the run's recipe with settings for this prediction.

    Raises:
        RecipeError: a setting is invalid.
        RunError: a setting is not one of ``SETTABLE``.
    """
    own = run.recipe(TASKS)
    if not settings:
        return own
    switch_on = ["evaluate={}"] if own.evaluate is None else []
    before, recipe = (load_recipe(run.recipe_file, [*switch_on, *more], tasks=TASKS) for more in ((), settings))
    allowed = tuple(f"{key}." for key in SETTABLE)
    if others := [key for key in changed_keys(before, recipe) if not f"{key}.".startswith(allowed)]:
        rule = f"a prediction accepts only settings of {', '.join(SETTABLE)}"
        remedy = "Leave it out: prompts and images must be those of training."
        raise RunError("run.setting_not_changeable", rule, place="--set", value=", ".join(others), remedy=remedy)
    return recipe


def _check_out(request: RowsRequest) -> None:
    """Check the table's name before any work, and create its folder.

    Raises:
        DataError: its suffix is unknown, or it is in the folder of the rows.
        RunError: it exists or cannot be written.
    """
    out, source = request.out, request.source
    if out.suffix.lower() not in SUFFIXES:
        rule, remedy = "the table must end in .csv or .jsonl", "Choose another name."
        raise DataError("predict.out_suffix_unknown", rule, place="--out", value=str(out), remedy=remedy)
    if out.exists() and source.exists() and out.samefile(source):
        rule = "the table must not be the file of the rows, which an interrupted prediction reads again"
        raise DataError("predict.out_is_source", rule, place="--out", value=str(out), remedy="Choose another.")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        rule = "the table must be outside the folder of the rows, which would have it as a file of rows afterwards"
        raise DataError("predict.out_in_source", rule, place="--out", value=str(out), remedy="Choose another folder.")
    # A killed command can have written the table, and not have removed its saved predictions.
    if not _saved_predictions(out):
        check_free(out, force=request.force)


def _saved_predictions(out: Path) -> list[Path]:
    """Return the files of saved predictions beside a table, also those of other weights or rows."""
    return list(out.parent.glob(f".{escape(out.name)}.*.partial"))


@dataclass(frozen=True, slots=True)
class _Job:
    """A loaded model, the file of saved predictions, and the images whose rows are skipped."""

    recipe: Recipe
    completer: Completer
    partial: Path
    skipped: frozenset[ImageRef]
    stop: StopRequest
    progress: Progress


def _scan_images(
    recipe: Recipe, rows: UnlabelledRows, images: ImageStore, stop: StopRequest, progress: Progress
) -> frozenset[ImageRef]:
    """Scan all images before the model is loaded, as before training, and return the unreadable ones.

    Raises:
        ImageError: images are unreadable, and the recipe has ``unreadable = "stop"``. The error lists them.
        Interrupted: after a signal.
    """

    def report(done: int) -> None:
        progress("images", done, 0)
        stop.check("predictions have not begun")

    unreadable = recipe.images.unreadable
    refs = (ref for sample in rows.samples for ref in sample.images)
    found = scan(refs, images, recipe.images.scan if unreadable == "stop" else "full", progress=report)
    progress("images", found.checked, found.checked)
    found = found.with_rows(rows_of_images(rows.samples, found.shown_refs))
    for note in found.notes:
        warn(note.code, note.rule, place="--data")
    if found.bad and unreadable == "stop":
        try:
            found.raise_if_bad()
        except ImageError as error:
            remedy = f"{error.remedy} A prediction has --image-root, and --set images.unreadable=skip."
            raise ImageError(error.code, error.rule, place="--data", remedy=remedy) from None
    if found.bad:
        what = "replaced by a grey square" if unreadable == "placeholder" else "skipped with their rows"
        shown = list_places(f"{one.row}: {one.error.rule}" for one in found.bad[:SHOWN])
        rule = f"the number of images {what} should be 0 (for example {shown})"
        warn("predict.images_unreadable", rule, place="--data", value=len(found.bad))
    return found.bad_refs


def _identity(recipe: Recipe, weights: Path | None, rows: UnlabelledRows, request: RowsRequest) -> str:
    """Return a digest of the weights' files, the rows with their prompts and images, and the generation settings."""
    model = (recipe.model.name, recipe.model.revision, recipe.model.precision, recipe.model.max_tokens)
    images = (ImagePolicy.from_recipe(recipe.images, recipe.model).key, recipe.images.unreadable == "placeholder")
    generation = (
        recipe.evaluation.max_completion_tokens,
        recipe.evaluation.batch_size,
        recipe.evaluation.probabilities,
    )
    read = (recipe.prompt, recipe.dataset.columns, recipe.settings, rows.fingerprint, request.constants)
    task, whole = TASKS[recipe.dataset.task], blake2b(digest_size=6)
    whole.update(repr((weights_identity(weights), model, images, generation, read)).encode())
    for sample in rows.samples:
        files = [(ref.name, file_state(ref.path)) for ref in sample.images]
        # The turns also change with the code of a custom task.
        whole.update(repr((sample.id, prompt_turns(task, sample), files)).encode())
    return whole.hexdigest()


def _generate(job: _Job, samples: Sequence[Sample], known: dict[str, Reply]) -> None:
    """Generate the completions that are not known, and save and add them. Raises Interrupted after a signal.

    Batches do not depend on what is known. A batch with a missing completion is generated as a whole, so that a resumed
    prediction is equal to an uninterrupted one.
    """
    size = job.recipe.evaluation.batch_size
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        new = [sample for sample in batch if sample.id not in known]
        if not new:
            continue
        readable = [sample for sample in batch if job.skipped.isdisjoint(sample.images)]
        replies = dict(zip((one.id for one in readable), job.completer.reply(readable), strict=True))
        found = {one.id: replies.get(one.id, Reply(Completion("", 0, truncated=False), UNREADABLE)) for one in new}
        append_lines(job.partial, [_line(sample_id, reply) for sample_id, reply in found.items()], private=True)
        known |= found
        done = start + len(batch)
        job.progress(PREDICT, done, len(samples), "")
        if done < len(samples):
            job.stop.check(f"{done:,} of {len(samples):,} predictions are saved")


def _line(sample_id: str, reply: Reply) -> Record:
    completion = reply.completion
    line: Record = {"id": sample_id, "completion": completion.text, "truncated": completion.truncated}
    if completion.probabilities is not None:
        line[PROBABILITIES] = dict(completion.probabilities)
    return line | ({} if reply.skipped is None else {"skipped": reply.skipped})


def _write(task: Task, rows: UnlabelledRows, known: Mapping[str, Reply], request: RowsRequest) -> RowPredictions:
    """Write the table in the order of the rows."""
    answers = [(sample, read_reply(task, sample, known[sample.id])) for sample in rows.samples]
    records = [_record(sample, answer) for sample, answer in answers]
    is_csv = request.out.suffix.lower() == ".csv"
    text = _csv(records) if is_csv else "".join(f"{_json(record)}\n" for record in records)
    if not has_text(request.out, text):
        claim_file(request.out, force=request.force)
        write_text(request.out, text, private=True)
    problems = Counter(answer.problem for _, answer in answers if answer.problem is not None)
    truncated = sum(answer.truncated for _, answer in answers)
    return RowPredictions(request.out, len(records), dict(problems.most_common()), truncated, rows.dropped)


def _record(sample: Sample, answer: Answer) -> Record:
    images = [ref.name for ref in sample.images]
    record: Record = {
        "id": sample.id,
        "image": images[0] if len(images) == 1 else images,
        "completion": answer.text,
        "answer": {name: value for name, value in answer.values.items() if _is_plain(value)},
        "problem": answer.problem,
        "truncated": answer.truncated,
    }
    return record if answer.probabilities is None else record | {PROBABILITIES: dict(answer.probabilities)}


def _csv(records: Sequence[Record]) -> str:
    """Return the records with a column for each part of an answer and each class. Lists are JSON."""
    parts, classes = ({name: None for one in records for name in one.get(key, ())} for key in ("answer", PROBABILITIES))
    header = [*COLUMNS, *(f"answer_{name}" for name in parts), *(f"probability_{name}" for name in classes)]
    rows = (
        [
            *(one[name] for name in COLUMNS),
            *(one["answer"].get(name) for name in parts),
            *(one.get(PROBABILITIES, {}).get(name) for name in classes),
        ]
        for one in records
    )
    return csv_text([header, *([_cell(value) for value in row] for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
