"""Prediction step after step: every chain of a file, with the memory that the model's own answers leave."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolkit.data.agent_memory import Carried
from toolkit.errors import DataError, warn
from toolkit.evaluation.answers import Reply, reply_of
from toolkit.evaluation.episodes import Turn, rollout
from toolkit.evaluation.generate import Asker, weights_seen
from toolkit.evaluation.predict import PREDICT
from toolkit.evaluation.unlabelled_rows import OpenRows, carrying, read_open
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
    """What is predicted, and where to.

    Attributes:
        rows: a file with a task, a screenshot and a goal in each row; see ``read_open``.
        out: a JSONL file: the place of each step, its prediction (places in pixels of the screenshot), the memory
            before and after it, the completion, and what is wrong with it.
        image_root: the folder that the screenshots' paths start from; None: that of ``rows``.
    """

    rows: Path
    out: Path
    image_root: Path | None = None


def predict_chains(
    run: RunFolder,
    files: Files,
    stop: StopRequest,
    progress: Progress = no_progress,
    backend: Backend | None = None,
    chosen: Path | None = None,
) -> list[Record]:
    """Answer every row and give the lines that ``files.out`` then holds, in the order of the rows.

    Every answer is a flushed line. Called again after an interruption it goes on; called again at the end it gives the
    lines that are there.

    Args:
        run: its last trained weights are asked, or its base model where nothing was trained.
        files: rows and predictions.
        stop: looked at after every batch.
        progress: told how far it is.
        backend: who loads and asks the model; default: the recipe's.
        chosen: weights that are asked instead of the run's own; see ``predict``.

    Raises:
        DataError: the rows cannot be asked, or ``out`` holds something else.
        Interrupted: a signal came; what was answered is kept.
    """
    recipe = run.recipe(TASKS)
    task, carried = carrying(recipe)
    rows, out = read_open(recipe, files.rows, files.image_root), files.out
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
            asker = Asker.load(recipe, prompts, weights, backend, stored=stored)
            batches = rollout(task, rows.samples, rows.chains, known, asker.reply, recipe.evaluation.batch_size)
            _keep(batches, _Kept(carried, digest, out, _total(rows)), stop, progress)
    return _in_order(out, rows)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where turns are written, how, and how many there will be."""

    carried: Carried
    digest: str
    out: Path
    total: int


def _keep(batches: Iterable[Sequence[Turn]], kept: _Kept, stop: StopRequest, progress: Progress) -> None:
    """Write what is new of each batch before the next is asked; raises Interrupted as ``predict_chains``."""
    done = 0
    for turns in batches:
        new = [turn for turn in turns if turn.new]
        for turn in new:
            append_line(kept.out, _line(kept.carried, turn, kept.digest))
        done += len(turns)
        progress(PREDICT, done, kept.total, "")
        if done < kept.total and new:
            stop.check(f"{kept.out} holds {done} of {kept.total} predictions")


def _total(rows: OpenRows) -> int:
    return sum(len(chain.numbers) for chain in rows.chains)


def _identity(recipe: Recipe, weights: Path | None, rows: OpenRows) -> str:
    """A digest of the weights' files, the rows, and how they are asked."""
    sections = (recipe.model.name, recipe.model.precision, recipe.prompt, recipe.images, recipe.settings)
    pictures = [(ref.path, ref.path.stat().st_mtime_ns) for sample in rows.samples for ref in sample.images]
    how = (weights_seen(weights), sections, recipe.evaluation.max_completion_tokens, rows.fingerprint, pictures)
    return blake2b(repr(how).encode(), digest_size=6).hexdigest()


def _known(out: Path, digest: str) -> dict[str, Reply]:
    """The replies in ``out``, whose folder is made; raises DataError where it is no file of these predictions."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lines, torn = (read_lines(out), out.read_bytes().rpartition(b"\n")[2]) if out.exists() else ([], b"")
        out.open("ab").close()  # nobody wants to hear of a file that cannot be written after the model has answered
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
    """Whether a last line without an end is what a crash left of ours: behind others of ours, or a part of a first."""
    try:
        json.loads(torn or b"-")
    except ValueError:
        return bool(lines) or not torn or torn.startswith(_BEGINS)
    return bool(lines)


_BEGINS = b'{"id": '
"""How ``_line`` is written."""


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
        "unasked": turn.unasked,
        "asked": digest,
    }


def _in_order(out: Path, rows: OpenRows) -> list[Record]:
    """The lines in the order of the rows, as the finished file has them too."""
    lines = {line["id"]: line for line in read_lines(out)}
    ordered = [lines[sample.id] for sample in rows.samples if sample.id in lines]
    text = _text(ordered)
    if text != out.read_text(encoding="utf-8"):
        write_text(out, text)
    return ordered


def _text(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
