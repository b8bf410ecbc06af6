"""Predict every GUI step of a file, with the agent memory that the model's own completions leave."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from toolkit.data import RowCount, RowIndex, Tally, open_index, source_folder
from toolkit.data.columns import RowSettings, resolve_columns
from toolkit.data.episodes import FIRST, LINK, REPEATED, AgentMemoryFunctions, Link
from toolkit.data.groups import private_parts
from toolkit.data.sample import Sample
from toolkit.data.task import RowOrigin, Task
from toolkit.errors import DataError, ImageError, Problem, RowProblem, RunError, list_places, warn
from toolkit.evaluation.answers import Reply, reply_of
from toolkit.evaluation.episodes import Episode, Turn, find_episodes, rollout, task_with_memory
from toolkit.evaluation.generate import (
    Completer,
    file_state,
    is_whole_model,
    prompts_of_readable_images,
    weights_identity,
)
from toolkit.evaluation.predict import PREDICT
from toolkit.identifiers import private_opener
from toolkit.images import ImagePolicy, read_image_header
from toolkit.models import Backend
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
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks import TASKS

_BEGINS = b'{"id": '
"""First bytes of a line of ``_line``."""


@dataclass(frozen=True, slots=True)
class EpisodesRequest:
    """The input and output of a prediction.

    Attributes:
        source: a file with a task, a screenshot and a goal in each row. See ``read_unlabelled_episodes``.
        out: the JSONL file of predictions: position of the step, predicted action (coordinates in pixels of the
            screenshot), agent memory before and after it, completion, and why it could not be parsed.
        image_root: the folder of relative screenshot paths. None: that of ``source``.
    """

    source: Path
    out: Path
    image_root: Path | None = None


@dataclass(frozen=True, slots=True)
class UnlabelledEpisodes:
    """The samples of a file.

    Attributes:
        samples: the samples, in the order of the file.
        episodes: their episodes.
        notes: warnings about unusable rows, and about rows after a missing step, which are skipped.
        fingerprint: the fingerprint of the rows.
    """

    samples: tuple[Sample, ...]
    episodes: tuple[Episode, ...]
    notes: tuple[Problem, ...]
    fingerprint: str


def predict_episodes(
    run: RunFolder,
    request: EpisodesRequest,
    stop: StopRequest,
    progress: Progress = no_progress,
    backend: Backend | None = None,
    weights: Path | None = None,
) -> list[Record]:
    """Predict every row, and return the lines of ``request.out`` in the order of the rows.

    Every prediction is a flushed line. An interrupted call resumes, and a repeated call returns the saved lines.

    Args:
        run: a run. Its last trained weights are used, or its base model if nothing was trained.
        request: rows and output.
        stop: checked after every batch.
        progress: called with the progress.
        backend: loads the model. Default: that of the recipe.
        weights: weights to use instead of the run's. See ``predict``.

    Raises:
        DataError: the rows are invalid, or ``out`` has other content or does not end in .jsonl.
        Interrupted: after a signal. Saved predictions are kept.
    """
    recipe = run.recipe(TASKS)
    task, agent_memory = task_with_memory(recipe)
    if request.out.suffix.lower() != ".jsonl":
        rule, remedy = "the file of predicted GUI steps must end in .jsonl", "Choose another name."
        raise DataError("predict.out_suffix_unknown", rule, place="--out", value=str(request.out), remedy=remedy)
    rows, out = read_unlabelled_episodes(recipe, request.source, request.image_root), request.out
    for note in rows.notes:
        warn(note.code, note.rule, place=note.place, value=note.value, remedy=note.remedy)
    own = current_weights(run, recipe)
    digest = _identity(recipe, weights or own, rows)
    known = _known(out, digest)
    if len(known) < _total(rows):
        with recording(run, recipe.run, PREDICT) as recorder, recorder.stage(PREDICT):
            prompts = prompts_of_readable_images(recipe)
            completer = Completer.load(recipe, prompts, weights or own, backend, stored=is_whole_model(weights))
            batches = rollout(task, rows.samples, rows.episodes, known, completer.reply, recipe.evaluation.batch_size)
            _save(batches, _Output(agent_memory, digest, out, _total(rows)), stop, progress)
    return _in_order(out, rows)


def read_unlabelled_episodes(recipe: Recipe, file: Path, image_root: Path | None = None) -> UnlabelledEpisodes:
    """Read the rows of ``file`` (.csv, .jsonl, .json or .parquet) as samples of the recipe's task.

    Args:
        recipe: defines the task, column names, prompt and settings.
        file: the rows. References in it are ignored.
        image_root: the folder of relative screenshot paths. Default: that of the file.

    Raises:
        DataError: the task has no agent memory, a column is missing, or no row is usable.
    """
    task, agent_memory = task_with_memory(recipe)
    index = open_index(str(file), id_column=recipe.dataset.columns.get("id"))
    origin = _origin(recipe, task, agent_memory, index, image_root)
    links = task.link(index, origin) if task.link else None
    tally, samples = Tally(), []
    for number, (name, row) in enumerate(index):
        link = Link()
        if links is not None:
            state = REPEATED if links.previous[number] == REPEATED else FIRST
            link = Link(None, state, int(links.places[number]), int(links.lengths[number]))
        try:
            sample = agent_memory.open_row(name, {**row, LINK: link}, origin)
            for ref in sample.images:
                read_image_header(ref, ImagePolicy.from_recipe(recipe.images, recipe.model))
            samples.append(replace(sample, place=f"{index.source}, {index.place(number)}"))
        except RowProblem as problem:
            tally.add_problem(index.place(number), problem, private_parts(name, row, origin))
        except ImageError as error:
            rule = f"the screenshot cannot be opened: {error.rule}"
            tally.add(rule, index.place(number), "predict.screenshot_not_readable", error.problem.value)
    notes = [Problem("predict.steps_irregular", note, str(file)) for note in (links.notes if links else ())]
    dropped = tally.of(str(file))
    notes += [
        Problem("predict.rows_left_out", _left_out(one), one.source, one.count, one.remedy or "Correct these rows.")
        for one in dropped
    ]
    if not samples:
        raise DataError(
            "predict.no_usable_row",
            "at least one row must be usable",
            place=file,
            value="; ".join(map(_left_out, dropped)),
        )
    episodes, unreachable = find_episodes([agent_memory.position(sample) for sample in samples])
    notes += _unreachable(agent_memory, [samples[number] for number in unreachable], str(file))
    return UnlabelledEpisodes(tuple(samples), tuple(episodes), tuple(notes), index.fingerprint)


@dataclass(frozen=True, slots=True)
class _Output:
    """The file of predictions: how turns are written to it, and their total number."""

    agent_memory: AgentMemoryFunctions
    digest: str
    out: Path
    total: int


def _save(batches: Iterable[Sequence[Turn]], output: _Output, stop: StopRequest, progress: Progress) -> None:
    """Save the new turns of each batch before the next is generated. Raises Interrupted as ``predict_episodes``."""
    done = 0
    for turns in batches:
        new = [turn for turn in turns if turn.new]
        for turn in new:
            append_line(output.out, _line(output.agent_memory, turn, output.digest), private=True)
        done += len(turns)
        progress(PREDICT, done, output.total, "")
        if done < output.total and new:
            stop.check(f"{output.out} holds {done} of {output.total} predictions")


def _total(rows: UnlabelledEpisodes) -> int:
    return sum(len(episode.numbers) for episode in rows.episodes)


def _identity(recipe: Recipe, weights: Path | None, rows: UnlabelledEpisodes) -> str:
    """Return a digest of the weights' files, the rows, and the generation settings."""
    sections = (recipe.model.name, recipe.model.precision, recipe.prompt, recipe.images, recipe.settings)
    images = [(ref.name, *file_state(ref.path)) for sample in rows.samples for ref in sample.images]
    how = (weights_identity(weights), sections, recipe.evaluation.max_completion_tokens, rows.fingerprint, images)
    return blake2b(repr(how).encode(), digest_size=6).hexdigest()


def _known(out: Path, digest: str) -> dict[str, Reply]:
    """Return the replies in ``out``, after creating its folder. Raises DataError if it has other predictions."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lines, torn = (read_lines(out), out.read_bytes().rpartition(b"\n")[2]) if out.exists() else ([], b"")
        os.close(
            private_opener(str(out), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        )  # reports a file that is not writable before the model generates
    except RunError as error:
        if error.code != "run.line_damaged":
            raise DataError(
                "predict.out_not_writable", "the file of predictions must be writable", place=out, value=error.value
            ) from error
        lines, torn = [{}], b""
    except OSError as error:
        raise DataError(
            "predict.out_not_writable", "the file of predictions must be writable", place=out, value=error
        ) from None
    if any(line.get("digest") != digest for line in lines) or not _is_cut(lines, torn):
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


def _line(agent_memory: AgentMemoryFunctions, turn: Turn, digest: str) -> Record:
    sample, answer = turn.sample, turn.answer
    return {
        "id": sample.id,
        **agent_memory.place_columns(sample),
        "question": sample.fields["question"],
        **agent_memory.value_columns(answer.values),
        "agent_memory": agent_memory.plain(agent_memory.held(sample)),
        "agent_memory_after": agent_memory.plain(turn.after),
        "completion": answer.text,
        "answer": dict(answer.values),
        "problem": answer.problem,
        "truncated": answer.truncated,
        "skipped": turn.skipped,
        "digest": digest,
    }


def _in_order(out: Path, rows: UnlabelledEpisodes) -> list[Record]:
    """Return the lines in the order of the rows, and rewrite the file in this order."""
    lines = {line["id"]: line for line in read_lines(out)}
    ordered = [lines[sample.id] for sample in rows.samples if sample.id in lines]
    text = _text(ordered)
    if text != out.read_text(encoding="utf-8"):
        write_text(out, text, private=True)
    return ordered


def _text(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _left_out(dropped: RowCount) -> str:
    return f"the number of skipped rows should be 0: {dropped.reason} (for example {list_places(dropped.shown)})"


def _origin(
    recipe: Recipe, task: Task, agent_memory: AgentMemoryFunctions, index: RowIndex, image_root: Path | None
) -> RowOrigin:
    """Return the columns of the file. Columns that only training rows need may be missing."""
    available = index.columns
    named = {
        field: column
        for field, column in recipe.dataset.columns.items()
        if column in available or field in agent_memory.open_fields
    }
    settings = task.settings(recipe, "predict")
    wanted = RowSettings(named, None, recipe.prompt.context, (), recipe.images.max_per_question, settings)
    column, problems = resolve_columns(replace(task, required=agent_memory.open_fields), wanted, available)
    if problems:
        rule = "\n  ".join(["the columns must match the task:", *map(str, problems)])
        raise DataError("predict.columns_invalid", rule, place=index.source)
    root = (image_root or source_folder(index.source) or Path()).absolute()
    return RowOrigin(Path(index.source), root, column, context=recipe.prompt.context, settings=settings)


def _unreachable(agent_memory: AgentMemoryFunctions, samples: Sequence[Sample], file: str) -> Iterator[Problem]:
    positions: list[EpisodePosition] = [agent_memory.position(sample) for sample in samples]
    if positions:
        example = f"{samples[0].shown}, step {positions[0].position}"
        rule = f"the number of rows after a missing step, which are skipped, should be 0 (for example {example})"
        remedy = "Add the rows of the missing steps."
        yield Problem("predict.rows_after_missing_step", rule, file, len(positions), remedy)
