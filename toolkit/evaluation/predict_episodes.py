"""Predict every GUI step of a file, with the agent memory that the model's own completions leave."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolkit.data.episodes import Carried
from toolkit.errors import DataError, warn
from toolkit.evaluation.answers import Reply, reply_of
from toolkit.evaluation.episodes import Turn, rollout
from toolkit.evaluation.generate import Generator, weights_identity
from toolkit.evaluation.predict import PREDICT
from toolkit.evaluation.unlabelled_rows import UnlabelledRows, read_unlabelled, task_with_memory
from toolkit.images import ImageStore
from toolkit.models import Backend
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.runfolder import (
    Progress,
    Record,
    RunFolder,
    StopRequest,
    append_line,
    current_weights,
    no_progress,
    read_lines,
    remove_partial_line,
    write_text,
)
from toolkit.runfolder.usage import recording
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Files:
    """The input and output of a prediction.

    Attributes:
        rows: a file with a task, a screenshot and a goal in each row. See ``read_unlabelled``.
        out: the JSONL file of predictions: position of the step, predicted action (coordinates in pixels of the
            screenshot), agent memory before and after it, completion, and why it could not be parsed.
        image_root: the folder of relative screenshot paths. None: that of ``rows``.
    """

    rows: Path
    out: Path
    image_root: Path | None = None


def predict_episodes(
    run: RunFolder,
    files: Files,
    stop: StopRequest,
    progress: Progress = no_progress,
    backend: Backend | None = None,
    chosen: Path | None = None,
) -> list[Record]:
    """Predict every row, and return the lines of ``files.out`` in the order of the rows.

    Every prediction is a flushed line. An interrupted call resumes, and a repeated call returns the saved lines.

    Args:
        run: a run. Its last trained weights are used, or its base model if nothing was trained.
        files: rows and predictions.
        stop: checked after every batch.
        progress: called with the progress.
        backend: loads the model. Default: that of the recipe.
        chosen: weights to use instead of the run's. See ``predict``.

    Raises:
        DataError: the rows are invalid, or ``out`` has other content.
        Interrupted: after a signal. Saved predictions are kept.
    """
    recipe = run.recipe(TASKS)
    task, carried = task_with_memory(recipe)
    rows, out = read_unlabelled(recipe, files.rows, files.image_root), files.out
    for note in rows.notes:
        warn(note.code, note.rule, place=note.place, value=note.value)
    weights = chosen or current_weights(run, recipe)
    digest = _identity(recipe, weights, rows)
    known = _known(out, digest)
    if len(known) < _total(rows):
        with recording(run, recipe.run, PREDICT) as recorder, recorder.stage(PREDICT):
            prompts = Prompts.of(
                recipe, ImageStore.from_recipe(recipe.images.model_copy(update={"unreadable": "stop"}))
            )
            stored = chosen is not None and (chosen / "config.json").is_file()
            generator = Generator.load(recipe, prompts, weights, backend, stored=stored)
            batches = rollout(task, rows.samples, rows.episodes, known, generator.reply, recipe.evaluation.batch_size)
            _keep(batches, _Kept(carried, digest, out, _total(rows)), stop, progress)
    return _in_order(out, rows)


@dataclass(frozen=True, slots=True)
class _Kept:
    """How turns are saved, and their total number."""

    carried: Carried
    digest: str
    out: Path
    total: int


def _keep(batches: Iterable[Sequence[Turn]], kept: _Kept, stop: StopRequest, progress: Progress) -> None:
    """Save the new turns of each batch before the next is generated. Raises Interrupted as ``predict_episodes``."""
    done = 0
    for turns in batches:
        new = [turn for turn in turns if turn.new]
        for turn in new:
            append_line(kept.out, _line(kept.carried, turn, kept.digest))
        done += len(turns)
        progress(PREDICT, done, kept.total, "")
        if done < kept.total and new:
            stop.check(f"{kept.out} holds {done} of {kept.total} predictions")


def _total(rows: UnlabelledRows) -> int:
    return sum(len(episode.numbers) for episode in rows.episodes)


def _identity(recipe: Recipe, weights: Path | None, rows: UnlabelledRows) -> str:
    """Return a digest of the weights' files, the rows, and the generation settings."""
    sections = (recipe.model.name, recipe.model.precision, recipe.prompt, recipe.images, recipe.settings)
    pictures = [(ref.path, ref.path.stat().st_mtime_ns) for sample in rows.samples for ref in sample.images]
    how = (weights_identity(weights), sections, recipe.evaluation.max_completion_tokens, rows.fingerprint, pictures)
    return blake2b(repr(how).encode(), digest_size=6).hexdigest()


def _known(out: Path, digest: str) -> dict[str, Reply]:
    """Return the replies in ``out``, after creating its folder. Raises DataError if it has other predictions."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lines, torn = (read_lines(out), out.read_bytes().rpartition(b"\n")[2]) if out.exists() else ([], b"")
        out.open("ab").close()  # reports a file that is not writable before the model generates
    except ValueError:
        lines, torn = [{}], b""
    except OSError as error:
        raise DataError(
            "predict.out_not_writable", "the file of predictions must be writable", place=out, value=error
        ) from None
    if any(not isinstance(line, dict) or line.get("asked") != digest for line in lines) or not _is_cut(lines, torn):
        raise DataError(
            "predict.out_of_another_run",
            "the file must only have predictions of this model, recipe and file of rows",
            place=out,
            remedy="Name another file with --out, or move this one.",
        )
    remove_partial_line(out)
    return {line["id"]: reply_of(line) for line in lines}


def _is_cut(lines: Sequence[Record], torn: bytes) -> bool:
    """Return whether an incomplete last line is from a crash of this prediction, and not from another program."""
    try:
        json.loads(torn or b"-")
    except ValueError:
        return bool(lines) or not torn or torn.startswith(_BEGINS)
    return bool(lines)


_BEGINS = b'{"id": '
"""First bytes of a line of ``_line``."""


def _line(carried: Carried, turn: Turn, digest: str) -> Record:
    question, answer = turn.question, turn.answer
    return {
        "id": question.id,
        **carried.place_columns(question),
        "question": question.fields["question"],
        **carried.value_columns(answer.values),
        "memory": carried.plain(carried.held(question)),
        "memory_after": carried.plain(turn.after),
        "completion": answer.text,
        "answer": dict(answer.values),
        "problem": answer.problem,
        "truncated": answer.truncated,
        "unasked": turn.skipped,
        "asked": digest,
    }


def _in_order(out: Path, rows: UnlabelledRows) -> list[Record]:
    """Return the lines in the order of the rows, and rewrite the file in this order."""
    lines = {line["id"]: line for line in read_lines(out)}
    ordered = [lines[sample.id] for sample in rows.samples if sample.id in lines]
    text = _text(ordered)
    if text != out.read_text(encoding="utf-8"):
        write_text(out, text)
    return ordered


def _text(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
