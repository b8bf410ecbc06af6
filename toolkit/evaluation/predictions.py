"""The files of predictions: generate the missing ones, read them back, and score them and the baselines.

Every prediction is one flushed line, so that an interrupted evaluation resumes after the last one.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.errors import RunError
from toolkit.evaluation.answers import Reply, judge, read_answer, read_reply, reply_of
from toolkit.evaluation.context import Context
from toolkit.evaluation.episodes import rollout
from toolkit.evaluation.evaluation_set import OWN, REFERENCE, EvaluationSet
from toolkit.evaluation.generate import Generator
from toolkit.evaluation.results import BASELINE, EvaluationResult, evaluation_stage
from toolkit.models import Backend
from toolkit.models.lengths import check_lengths
from toolkit.models.prompts import Prompts
from toolkit.runfolder import Record, RunFolder, append_line, read_json, read_lines, remove_partial_line, write_json
from toolkit.scoring.statistics import ScoredAnswer

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.{}.partial.jsonl"
"""Name of an incomplete file. Its digest identifies the model, prompt and settings."""
Rows = list[ScoredAnswer]
Answered = list[tuple[Sample, Answer]]


def answers_file(mode: str, digest: str | None = None) -> str:
    """Return the file of a mode's predictions, with a digest while it is incomplete."""
    if digest is None:
        return PREDICTIONS if mode == REFERENCE else f"predictions.{mode}.jsonl"
    return PARTIAL.format(digest if mode == REFERENCE else f"{mode}-{digest}")


def generate_missing(
    context: Context,
    name: str,
    questions: EvaluationSet,
    files: Mapping[str, Path],
    weights: Path | None,
    backend: Backend | None = None,
) -> None:
    """Complete the files of predictions. The model is loaded only if predictions are missing.

    Args:
        context: the run.
        name: the name of the evaluation.
        questions: the samples.
        files: mode -> JSONL file.
        weights: the weights. None: the base model.
        backend: loads the model. Default: that of the recipe.

    Raises:
        DataError: a row is too long.
        RunError: a line of a file is damaged.
        Interrupted: after a signal. Saved predictions are kept.
    """
    waiting: dict[str, list[Sample]] = {}
    for mode, file in files.items():
        remove_partial_line(file)
        done = {line["id"] for line in read_lines(file)}
        if missing := [sample for sample in questions.samples_of(mode) if sample.id not in done]:
            waiting[mode] = missing
    if not waiting:
        return
    recipe = context.recipe
    stored = weights is not None and weights != context.weights and (weights / "config.json").is_file()
    generator = Generator.load(recipe, questions.prompts, weights, backend, stored=stored)
    if REFERENCE in waiting:
        most, tokens = recipe.model.max_tokens, recipe.evaluation.max_completion_tokens
        processor = generator.policy.processor
        check_lengths(processor, questions.prompts, waiting[REFERENCE], most, tokens, on_row=context.no_step_yet)
    for mode, samples in waiting.items():
        job = _Job(context, name, mode, questions, generator, files[mode])
        if mode == OWN:
            _roll_out(job)
        else:
            _generate_each(job, samples)


def known_replies(file: Path) -> dict[str, Reply]:
    """Return sample id -> the reply in a file of predictions.

    Raises:
        RunError: a line is damaged.
    """
    return {line["id"]: reply_of(line) for line in read_lines(file)}


def read_mode(questions: EvaluationSet, mode: str, file: Path) -> Answered:
    """Return every sample of a mode with its agent memory, and its parsed answer. A rollout is replayed.

    Raises:
        RunError: a prediction is missing, or a line is damaged.
    """
    known = _complete(file, [sample.id for sample in questions.samples_of(mode)])
    if mode != OWN:
        return [(sample, read_reply(questions.task, sample, known[sample.id])) for sample in questions.samples_of(mode)]
    turns = rollout(questions.task, questions.samples, questions.episodes, known, lambda _: [], len(questions.samples))
    return [(turn.question, turn.answer) for batch in turns for turn in batch]


def judge_predictions(context: Context, prompts: Prompts, samples: Sequence[Sample], file: Path) -> Rows:
    """Parse and score saved completions. Return one row per sample, in order."""
    known, task = _complete(file, [sample.id for sample in samples]), prompts.task
    by = context.recipe.results_by
    return [judge(task, sample, read_reply(task, sample, known[sample.id]), by) for sample in samples]


def earlier_rows(context: Context, questions: EvaluationSet, name: str) -> dict[str, Rows]:
    """Return mode -> the rows of an earlier evaluation, for the common modes."""
    files = _answers_of(context.run, context.run.result(evaluation_stage(name), EvaluationResult))
    return {
        mode: questions.judge(read_mode(questions, mode, files[mode]), context.recipe)
        for mode in questions.modes
        if mode in files
    }


@dataclass(frozen=True, slots=True)
class Baselines:
    """The rows of the baselines.

    Attributes:
        rows: label -> rows, with the majority baseline first.
        own: score -> the rows of its own majority baseline.
    """

    rows: Mapping[str, Rows]
    own: Mapping[str, Rows]

    def of(self, score: str) -> dict[str, Rows]:
        """Return label -> the rows of the baselines of a score."""
        return {**self.rows, BASELINE: self.own.get(score, self.rows[BASELINE])}


def baseline_rows(context: Context, questions: EvaluationSet) -> Baselines:
    """Return the baselines, scored like a model's completions."""

    samples, task = questions.samples, questions.task

    def judged(texts: Iterable[str]) -> Rows:
        answers = [(sample, task.parse(text, sample)) for sample, text in zip(samples, texts, strict=True)]
        return questions.judge(answers, context.recipe)

    majority = {
        score: judged(known[sample.id] for sample in samples) for score, known in _majority(context, questions).items()
    }
    rows = {BASELINE: majority.pop(task.primary)}
    for label, complete in (questions.agent_memory.baselines if questions.agent_memory else {}).items():
        rows[label] = judged(map(complete, samples))
    return Baselines(rows, majority)


@dataclass(frozen=True, slots=True)
class _Job:
    context: Context
    name: str
    mode: str
    questions: EvaluationSet
    generator: Generator
    file: Path

    def save(self, sample: Sample, answer: Answer, skipped: str | None = None) -> None:
        line = {"split": self.context.recipe.evaluation.split, **_prediction(sample, answer)}
        append_line(self.file, line | _episode_columns(self.questions, sample, skipped))

    def report(self, done: int, total: int) -> None:
        """Report the progress, and raise Interrupted after a signal unless all is done."""
        memory = self.questions.names[self.mode]
        stage = evaluation_stage(self.name) + (f" ({memory})" if memory else "")
        self.context.progress(stage, done, total, "")
        if done < total:
            self.context.stop.check(f"{stage} is saved after {done} of {total} samples")


def _generate_each(job: _Job, samples: list[Sample]) -> None:
    size, task = job.context.recipe.evaluation.batch_size, job.questions.task
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        for sample, completion in zip(batch, job.generator.complete(batch), strict=True):
            job.save(sample, read_answer(task, sample, completion))
        job.report(start + len(batch), len(samples))


def _roll_out(job: _Job) -> None:
    questions = job.questions
    total, done = sum(len(episode.numbers) for episode in questions.episodes), 0
    known, size = known_replies(job.file), job.context.recipe.evaluation.batch_size
    for turns in rollout(questions.task, questions.samples, questions.episodes, known, job.generator.reply, size):
        for turn in turns:
            if turn.new:
                job.save(turn.question, turn.answer, turn.skipped)
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
    }


def _episode_columns(questions: EvaluationSet, sample: Sample, skipped: str | None) -> Record:
    """Return what a replay of a rollout needs: the position in the episode, and the agent memory of the prompt."""
    agent_memory = questions.agent_memory
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


def _majority(context: Context, questions: EvaluationSet) -> dict[str, dict[str, str]]:
    """Return score -> sample id -> the majority answer, with the primary score first.

    They are saved in the run, because computing them reads every training row.
    """
    file = context.run.stage_folder(BASELINE) / f"{context.recipe.evaluation.split}.json"
    task = questions.task
    wanted = {task.primary: task.baseline, **task.baselines}
    known: dict[str, dict[str, str]] = read_json(file).get("scores", {}) if file.is_file() else {}
    if known.keys() != wanted.keys() or any(sample.id not in known[task.primary] for sample in questions.samples):
        found = {score: baseline(context.data.train) for score, baseline in wanted.items()}
        known = {score: {one.id: complete(one) for one in questions.samples} for score, complete in found.items()}
        write_json(file, {"scores": known})
    return {score: known[score] for score in wanted}
