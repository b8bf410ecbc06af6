"""Predict every row of a file, or every image of a folder, and write a table of the answers.

Every prediction is a flushed line of a hidden file beside the output, so that an interrupted prediction resumes.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import Any

from toolkit.data import Dropped
from toolkit.data.result import DataResult
from toolkit.data.sample import Answer, Sample
from toolkit.errors import DataError, ImageError, warn
from toolkit.evaluation.answers import Reply, read_reply, reply_of
from toolkit.evaluation.generate import Completer, is_whole_model, prompts_of_readable_images, weights_identity
from toolkit.evaluation.predict import PREDICT
from toolkit.evaluation.unlabelled import SPLIT, Constants, Unlabelled, read_unlabelled_rows
from toolkit.images import ImageStore, read_image_header
from toolkit.models import Backend
from toolkit.models.backend import Completion
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.runfolder import (
    Progress,
    Record,
    RunFolder,
    StopRequest,
    append_line,
    check_free,
    claim_file,
    current_weights,
    no_progress,
    read_lines,
    remove_partial_line,
    write_text,
)
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS, Task

SUFFIXES = (".csv", ".jsonl")
LINE_KEYS = ("id", "completion", "truncated")
UNREADABLE = "an image cannot be read"
"""Problem of a row with an unreadable image."""

SHOWN = 20
"""Unreadable images that an error lists."""


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Input and output of a prediction.

    Attributes:
        source: a file of rows in any format, or a folder of images.
        out: the table to write: .csv or .jsonl.
        image_root: the folder of relative image paths. None: that of the source.
        constants: question, options and context of every row.
        force: rename an existing ``out`` to ``NAME.old-1`` instead of raising an error.
    """

    source: Path
    out: Path
    image_root: Path | None = None
    constants: Constants = field(default_factory=Constants)
    force: bool = False


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
    dropped: tuple[Dropped, ...]


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
        RunError: ``out`` exists or cannot be written.
        Interrupted: after a signal. The same call resumes.
    """
    recipe = run.recipe(TASKS)
    if request.out.suffix.lower() not in SUFFIXES:
        rule, remedy = "the table must end in .csv or .jsonl", "Choose another name."
        raise DataError("predict.out_suffix_unknown", rule, place="--out", value=str(request.out), remedy=remedy)
    if request.out.exists() and request.source.exists() and request.out.samefile(request.source):
        rule = "the table must not be the file of the rows, which an interrupted prediction reads again"
        raise DataError("predict.out_is_source", rule, place="--out", value=str(request.out), remedy="Choose another.")
    check_free(request.out, force=request.force)
    data = run.result("data", DataResult) if run.is_done("data") else None
    settings, whole = _settings(recipe, data.found if data else {}), data.whole if data else ()
    rows = read_unlabelled_rows(recipe, settings, request.source, request.image_root, request.constants, whole)
    for note in rows.notes:
        warn(note.code, note.rule, place=note.place, value=note.value, remedy=note.remedy)
    prompts = _prompts(recipe)
    if recipe.images.unreadable == "stop":
        _check_images(rows.samples, prompts.images)
    own = current_weights(run, recipe)
    partial = request.out.with_name(f".{request.out.name}.{_identity(recipe, weights or own, rows, request)}.partial")
    remove_partial_line(partial)
    known = {line["id"]: reply_of(line) for line in read_lines(partial, LINE_KEYS)}
    if missing := [sample for sample in rows.samples if sample.id not in known]:
        with recording(run, recipe.run, PREDICT) as recorder, recorder.stage(PREDICT):
            completer = Completer.load(recipe, prompts, weights or own, backend, stored=is_whole_model(weights))
            job = _Job(recipe, completer, partial, len(rows.samples), stop, progress)
            known |= _generate(job, missing, len(known))
    result = _write(prompts.task, rows, known, request)
    for other in request.out.parent.glob(f".{request.out.name}.*.partial"):  # of other weights or rows too
        other.unlink()
    if used := prompts.images.report().placeholders:
        rule = "the number of images replaced by a grey square should be 0"
        warn("images.placeholders_used", rule, place=PREDICT, value=used)
    return result


def _settings(recipe: Recipe, found: Mapping[str, Any]) -> Any:
    """Return the settings of the task, with those that the rows of the run decided (``found``), such as the classes.

    Raises:
        DataError: the run has not read its rows.
    """
    task = TASKS[recipe.dataset.task]
    if task.from_rows and task.from_rows.needed and not found:
        rule = "the run must have read its rows, which decide settings of its task"
        raise DataError("predict.rows_not_read", rule, place="[data]", remedy="Start the run with toolkit run.")
    return task.settings_of(recipe, SPLIT, found)


@dataclass(frozen=True, slots=True)
class _Job:
    recipe: Recipe
    completer: Completer
    partial: Path
    total: int
    stop: StopRequest
    progress: Progress


def _prompts(recipe: Recipe) -> Prompts:
    """Return prompts that show placeholders only if the recipe says so."""
    if recipe.images.unreadable == "placeholder":
        return Prompts.of(recipe, ImageStore.from_recipe(recipe.images))
    return prompts_of_readable_images(recipe)


def _check_images(samples: Iterable[Sample], images: ImageStore) -> None:
    """Check the headers of all images before the model is loaded.

    Raises:
        ImageError: images are unreadable. The error lists them.
    """
    bad: dict[str, str] = {}
    for ref in {ref for sample in samples for ref in sample.images}:
        try:
            read_image_header(ref, images.policy)
        except ImageError as error:
            bad[str(ref.path)] = f"{error.place}: {error.rule}"
    if bad:
        shown = "\n".join(f"  {problem}" for problem in sorted(bad.values())[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        rule = f"all images must be readable, and {len(bad):,} are not:\n{shown}{more}\n"
        remedy = 'Correct --image-root, repair the files, or train with images.unreadable = "skip".'
        raise ImageError("images.unusable", rule, place=PREDICT, remedy=remedy)


def _identity(recipe: Recipe, weights: Path | None, rows: Unlabelled, request: RowsRequest) -> str:
    """Return a digest of the weights' files, the rows with their images, and the generation settings."""
    model = (recipe.model.name, recipe.model.revision, recipe.model.precision, recipe.model.max_tokens)
    sections = (recipe.prompt, recipe.images, recipe.settings, recipe.evaluation.max_completion_tokens)
    whole = blake2b(digest_size=6)
    whole.update(repr((weights_identity(weights), model, sections, rows.fingerprint, request.constants)).encode())
    for sample in rows.samples:
        files = [(str(ref.path), _time(ref.path)) for ref in sample.images]
        whole.update(repr((sample.id, files)).encode())
    return whole.hexdigest()


def _time(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _generate(job: _Job, samples: Sequence[Sample], done: int) -> dict[str, Reply]:
    """Generate and save completions in batches, and return sample id -> reply. Raises Interrupted after a signal."""
    found: dict[str, Reply] = {}
    size = job.recipe.evaluation.batch_size
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        readable = [sample for sample in batch if _opens(job, sample)]
        replies = dict(zip((one.id for one in readable), job.completer.reply(readable), strict=True))
        for sample in batch:
            reply = replies.get(sample.id, Reply(Completion("", 0, truncated=False), UNREADABLE))
            append_line(job.partial, _line(sample, reply))
            found[sample.id] = reply
        finished = done + start + len(batch)
        job.progress(PREDICT, finished, job.total, "")
        if finished < job.total:
            job.stop.check(f"{finished:,} of {job.total:,} predictions are saved")
    return found


def _opens(job: _Job, sample: Sample) -> bool:
    """Return whether the images of a row can be decoded. Raises ImageError unless the recipe skips unreadable ones."""
    try:
        for ref in sample.images:
            job.completer.prompts.images.get(ref)
    except ImageError:
        if job.recipe.images.unreadable != "skip":
            raise
        return False
    return True


def _line(sample: Sample, reply: Reply) -> Record:
    completion = reply.completion
    line: Record = {"id": sample.id, "completion": completion.text, "truncated": completion.truncated}
    if (probabilities := getattr(completion, "probabilities", None)) is not None:
        line["probabilities"] = dict(probabilities)
    return line | ({} if reply.skipped is None else {"skipped": reply.skipped})


def _write(task: Task, rows: Unlabelled, known: Mapping[str, Reply], request: RowsRequest) -> RowPredictions:
    """Write the table in the order of the rows."""
    answers = [(sample, read_reply(task, sample, known[sample.id])) for sample in rows.samples]
    records = [_record(sample, answer) for sample, answer in answers]
    is_csv = request.out.suffix.lower() == ".csv"
    text = _csv(records) if is_csv else "".join(f"{_json(record)}\n" for record in records)
    claim_file(request.out, force=request.force)
    write_text(request.out, text)
    problems = Counter(answer.problem for _, answer in answers if answer.problem is not None)
    truncated = sum(answer.truncated for _, answer in answers)
    return RowPredictions(request.out, len(records), dict(problems.most_common()), truncated, rows.dropped)


def _record(sample: Sample, answer: Answer) -> Record:
    images = [str(ref.path) for ref in sample.images]
    record: Record = {
        "id": sample.id,
        "image": images[0] if len(images) == 1 else images,
        "completion": answer.text,
        "answer": {name: value for name, value in answer.values.items() if _is_plain(value)},
        "problem": answer.problem,
        "truncated": answer.truncated,
    }
    probabilities = getattr(answer, "probabilities", None)
    return record if probabilities is None else record | {"probabilities": dict(probabilities)}


def _csv(records: Sequence[Record]) -> str:
    """Return the records with a column for each part of an answer and each class. Lists are JSON."""
    rows = [_with_columns(record) for record in records]
    columns = list(dict.fromkeys(name for record in rows for name in record))
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_cell(record.get(name)) for name in columns] for record in rows)
    return text.getvalue()


def _with_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    answer = {f"answer_{name}": value for name, value in record["answer"].items()}
    classes = {f"probability_{name}": value for name, value in record.get("probabilities", {}).items()}
    first = {name: record[name] for name in ("id", "image", "completion", "problem", "truncated")}
    return first | answer | classes


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
