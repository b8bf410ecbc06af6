"""The predictions of an evaluation: generate the missing ones, read them back, and score them and the baselines.

Every prediction is one flushed line, so that an interrupted evaluation resumes after the last one.
"""

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.errors import RunError
from toolkit.evaluation.answers import Reply, read_answer, read_reply, reply_of
from toolkit.evaluation.episodes import rollout
from toolkit.evaluation.evaluation_set import OWN, REFERENCE, VALIDATION, EvaluationSet
from toolkit.evaluation.generate import Completer, is_whole_model
from toolkit.evaluation.results import BASELINE, EvaluationResult, evaluation_stage
from toolkit.evaluation.stage_context import Context
from toolkit.models import Backend
from toolkit.models.lengths import check_lengths, longest_first
from toolkit.runfolder import (
    Record,
    RunFolder,
    append_line,
    from_json,
    read_json,
    read_lines,
    remove_partial_line,
    write_json,
    write_text,
)
from toolkit.scoring.statistics import ScoredAnswer

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.{}.partial.jsonl"
"""Name of an incomplete file. Its digest identifies the model, prompt and settings."""
LINE_KEYS = ("id", "completion", "truncated")
"""Keys of a line that an evaluation reads back."""
CHOICE_KEYS = ("id", "probabilities")
"""Keys of a line with class probabilities alone."""
Rows = list[ScoredAnswer]
Answered = list[tuple[Sample, Answer]]


@dataclass(frozen=True, slots=True)
class _Majority:
    """The saved answers of the majority baselines: score -> sample id -> answer."""

    scores: Mapping[str, Mapping[str, str]]


def answers_file(mode: str, digest: str | None = None) -> str:
    """Return the file of a mode's predictions, with a digest while it is incomplete."""
    if digest is None:
        return PREDICTIONS if mode == REFERENCE else f"predictions.{mode}.jsonl"
    return PARTIAL.format(digest if mode == REFERENCE else f"{mode}-{digest}")


def generate_missing(
    context: Context,
    name: str,
    evaluation_set: EvaluationSet,
    files: Mapping[str, Path],
    weights: Path | None,
    backend: Backend | None = None,
) -> None:
    """Complete the files of predictions. The model is loaded only if predictions are missing.

    Args:
        context: the run.
        name: the name of the evaluation.
        evaluation_set: the samples.
        files: mode -> JSONL file.
        weights: the weights. None: the base model.
        backend: loads the model. Default: that of the recipe.

    Raises:
        DataError: a row is too long.
        RunError: a line of a file is damaged.
        Interrupted: after a signal. Saved predictions are kept.
    """
    waiting: dict[str, list[Sample]] = {}
    saved: dict[str, set[str]] = {}
    for mode, file in files.items():
        remove_partial_line(file)
        saved[mode] = {line["id"] for line in read_lines(file, CHOICE_KEYS if mode == VALIDATION else LINE_KEYS)}
        if missing := [sample for sample in evaluation_set.samples_of(mode) if sample.id not in saved[mode]]:
            waiting[mode] = missing
    if not waiting:
        return
    recipe = context.recipe
    stored = weights != context.weights and is_whole_model(weights)
    completer = Completer.load(recipe, evaluation_set.prompts, weights, backend, stored=stored)
    if REFERENCE in waiting:
        most, tokens = recipe.model.max_tokens, recipe.evaluation.max_completion_tokens
        processor, check = completer.policy.processor, context.check_stop_before_first_step
        check_lengths(processor, evaluation_set.prompts, waiting[REFERENCE], most, tokens, on_row=check)
    for mode in waiting:
        job = _Job(context, name, mode, evaluation_set, completer, files[mode], saved[mode])
        if mode == OWN:
            _roll_out(job)
        elif mode == VALIDATION:
            _choose_each(job)
        else:
            _generate_each(job)


def finish_file(evaluation_set: EvaluationSet, mode: str, file: Path, target: Path) -> None:
    """Move a complete file of predictions to ``target``, with its lines in the order of the samples.

    Those of a rollout keep the order of generation, in which a step follows the one before it.
    """
    if mode == OWN:
        file.replace(target)
        return
    places = {sample.id: place for place, sample in enumerate(evaluation_set.samples_of(mode))}
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line]
    names = [line["id"] for line in read_lines(file, ("id",))]
    order = sorted(range(len(names)), key=lambda number: places.get(names[number], len(places)))
    write_text(target, "".join(f"{lines[number]}\n" for number in order), private=True)
    file.unlink()


def validation_rows(evaluation_set: EvaluationSet, file: Path) -> Rows:
    """Return the rows of the validation split with their class probabilities. Empty if a row or the file is missing.

    Raises:
        RunError: a line is damaged.
    """
    known = {line["id"]: line["probabilities"] for line in read_lines(file, CHOICE_KEYS)}
    samples, task = evaluation_set.validation, evaluation_set.task
    if any(sample.id not in known for sample in samples):
        return []
    return [
        ScoredAnswer(sample.id, sample.group, {}, probabilities=known[sample.id], truth=task.truth(sample))
        for sample in samples
    ]


def known_replies(file: Path) -> dict[str, Reply]:
    """Return sample id -> the reply in a file of predictions.

    Raises:
        RunError: a line is damaged.
    """
    return {line["id"]: reply_of(line) for line in read_lines(file, LINE_KEYS)}


def read_mode(evaluation_set: EvaluationSet, mode: str, file: Path) -> Answered:
    """Return every sample of a mode with its agent memory, and its parsed answer. A rollout is replayed.

    Raises:
        RunError: a prediction is missing, or a line is damaged.
    """
    task, samples = evaluation_set.task, evaluation_set.samples_of(mode)
    known = _complete(file, [sample.id for sample in samples])
    if mode != OWN:
        return [(sample, read_reply(task, sample, known[sample.id])) for sample in samples]
    everything = evaluation_set.samples
    turns = rollout(task, everything, evaluation_set.episodes, known, lambda _: [], len(everything))
    return [(turn.sample, turn.answer) for batch in turns for turn in batch]


def earlier_rows(context: Context, evaluation_set: EvaluationSet, name: str) -> dict[str, Rows]:
    """Return mode -> the rows of an earlier evaluation, for the common modes."""
    files = _answers_of(context.run, context.run.result(evaluation_stage(name), EvaluationResult))
    return {
        mode: evaluation_set.score_answers(read_mode(evaluation_set, mode, files[mode]), context.recipe)
        for mode in evaluation_set.modes
        if mode in files
    }


@dataclass(frozen=True, slots=True)
class Baselines:
    """The rows of the baselines.

    Attributes:
        rows: label -> rows, with the majority baseline first.
        own: score -> the rows of its own majority baseline.
        whole: custom metric of the whole set -> its value for the majority baseline.
    """

    rows: Mapping[str, Rows]
    own: Mapping[str, Rows]
    whole: Mapping[str, float] = field(default_factory=dict)

    def of(self, score: str) -> dict[str, Rows]:
        """Return label -> the rows of the baselines of a score."""
        return {**self.rows, BASELINE: self.own.get(score, self.rows[BASELINE])}


def baseline_rows(context: Context, evaluation_set: EvaluationSet) -> Baselines:
    """Return the baselines, scored like a model's completions."""

    samples, task = evaluation_set.samples, evaluation_set.task

    def parsed(texts: Iterable[str]) -> Answered:
        return [(sample, task.parse(text, sample)) for sample, text in zip(samples, texts, strict=True)]

    def scored(texts: Iterable[str]) -> Rows:
        return evaluation_set.score_answers(parsed(texts), context.recipe)

    known = _majority(context, evaluation_set)
    majority = {score: scored(answers[sample.id] for sample in samples) for score, answers in known.items()}
    rows = {BASELINE: majority.pop(task.primary)}
    for label, complete in (evaluation_set.agent_memory.baselines if evaluation_set.agent_memory else {}).items():
        rows[label] = scored(map(complete, samples))
    custom = evaluation_set.custom
    whole = custom.values(parsed(known[task.primary][sample.id] for sample in samples)).whole if custom else {}
    return Baselines(rows, majority, whole)


@dataclass(frozen=True, slots=True)
class _Job:
    context: Context
    name: str
    mode: str
    evaluation_set: EvaluationSet
    completer: Completer
    file: Path
    saved: Collection[str]
    """Ids of the samples whose predictions are in the file."""

    def batches(self) -> Iterator[tuple[list[Sample], int]]:
        """Yield each batch with an unsaved sample, and the number of samples up to its end. Long samples come first.

        Batches do not depend on what is saved, so that a resumed evaluation is equal to an uninterrupted one.
        """
        size, samples = self.context.recipe.evaluation.batch_size, self.evaluation_set.samples_of(self.mode)
        order = longest_first(self.completer.policy.processor, self.evaluation_set.prompts, samples)
        for start in range(0, len(order), size):
            batch = [samples[number] for number in order[start : start + size]]
            if any(sample.id not in self.saved for sample in batch):
                yield batch, start + len(batch)

    def save(self, sample: Sample, answer: Answer, skipped: str | None = None) -> None:
        line = {"split": self.context.recipe.evaluation.split, **_prediction(sample, answer)}
        append_line(self.file, line | _episode_columns(self.evaluation_set, sample, skipped), private=True)

    def report(self, done: int, total: int) -> None:
        """Report the progress, and raise Interrupted after a signal unless all is done."""
        memory = self.evaluation_set.names.get(self.mode, self.mode)
        stage = evaluation_stage(self.name) + (f" ({memory})" if memory else "")
        self.context.progress(stage, done, total, "")
        if done < total:
            self.context.stop.check(f"{stage} is saved after {done} of {total} samples")


def _generate_each(job: _Job) -> None:
    task, total = job.evaluation_set.task, len(job.evaluation_set.samples_of(job.mode))
    for batch, done in job.batches():
        for sample, completion in zip(batch, job.completer.complete(batch), strict=True):
            if sample.id not in job.saved:
                job.save(sample, read_answer(task, sample, completion))
        job.report(done, total)


def _choose_each(job: _Job) -> None:
    """Save class probabilities without completions."""
    total = len(job.evaluation_set.samples_of(job.mode))
    for batch, done in job.batches() if job.completer.probabilities else ():
        for sample, probabilities in zip(batch, job.completer.choose(batch), strict=True):
            if sample.id not in job.saved:
                append_line(job.file, {"id": sample.id, "probabilities": probabilities}, private=True)
        job.report(done, total)


def _roll_out(job: _Job) -> None:
    evaluation_set = job.evaluation_set
    episodes, samples = evaluation_set.episodes, evaluation_set.samples
    total, done = sum(len(episode.numbers) for episode in episodes), 0
    known, size = known_replies(job.file), job.context.recipe.evaluation.batch_size
    for turns in rollout(evaluation_set.task, samples, episodes, known, job.completer.reply, size):
        for turn in turns:
            if turn.new:
                job.save(turn.sample, turn.answer, turn.skipped)
        done += len(turns)
        if any(turn.new for turn in turns):
            job.report(done, total)


def _prediction(sample: Sample, answer: Answer) -> Record:
    return {
        "id": sample.id,
        "group": sample.group,
        "question": sample.fields.get("question"),
        "reference": dict(sample.reference),
        "completion": answer.text,
        "answer": {key: value for key, value in answer.values.items() if _is_plain(value)},
        "problem": answer.problem,
        "truncated": answer.truncated,
        **({} if answer.probabilities is None else {"probabilities": dict(answer.probabilities)}),
    }


def _episode_columns(evaluation_set: EvaluationSet, sample: Sample, skipped: str | None) -> Record:
    """Return what a replay of a rollout needs: the position in the episode, and the agent memory of the prompt."""
    agent_memory = evaluation_set.agent_memory
    if agent_memory is None:
        return {}
    position, memory = agent_memory.position(sample), agent_memory.plain(agent_memory.held(sample))
    return {
        "episode": position.episode,
        "position": position.position,
        "agent_memory": memory,
        "skipped": skipped,
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _answers_of(run: RunFolder, result: EvaluationResult) -> dict[str, Path]:
    """Return mode -> the predictions file of a finished evaluation."""
    main = run.path / result.predictions
    modes = result.agent_memory.modes if result.agent_memory else ()
    return {REFERENCE: main, **{mode: main.with_name(answers_file(mode)) for mode in modes if mode != REFERENCE}}


def _complete(file: Path, ids: Sequence[str]) -> dict[str, Reply]:
    known = known_replies(file)
    if missing := [name for name in ids if name not in known]:
        raise RunError(
            "evaluate.answers_missing",
            "the file must have all answers of a finished evaluation",
            place=file,
            value=f"{len(missing):,} of {len(ids):,} are missing, the first is {missing[0]}",
            remedy="Restore the file, or start again with --fresh (the old folder is kept under another name).",
        )
    return known


def _majority(context: Context, evaluation_set: EvaluationSet) -> Mapping[str, Mapping[str, str]]:
    """Return score -> sample id -> the majority answer, with the primary score first.

    They are saved in the run, because computing them reads every training row.
    """
    file = context.run.stage_folder(BASELINE) / f"{context.recipe.evaluation.split}.json"
    task = evaluation_set.task
    wanted = {task.primary: task.baseline, **task.baselines}
    known = _saved_majority(file)
    if known.keys() != wanted.keys() or any(sample.id not in known[task.primary] for sample in evaluation_set.samples):
        found = {score: baseline(context.data.train) for score, baseline in wanted.items()}
        known = {score: {one.id: complete(one) for one in evaluation_set.samples} for score, complete in found.items()}
        write_json(file, {"scores": known}, private=True)
    return {score: known[score] for score in wanted}


def _saved_majority(file: Path) -> Mapping[str, Mapping[str, str]]:
    """Return the saved answers. Empty: there are none, or the file is corrupt and must be written again."""
    try:
        return from_json(_Majority, read_json(file)).scores
    except (OSError, ValueError):
        return {}
