"""Generate the missing predictions of an evaluation. Every prediction is one flushed line."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.evaluation.answers import Reply, read_answer, reply_of
from toolkit.evaluation.context import Context
from toolkit.evaluation.episodes import rollout
from toolkit.evaluation.generate import Generator
from toolkit.evaluation.prompts import OWN, REFERENCE, EvaluationSet
from toolkit.models import Backend
from toolkit.models.lengths import check_lengths
from toolkit.runfolder import Record, append_line, read_lines, remove_partial_line

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.{}.partial.jsonl"
"""Name of an incomplete file. Its digest identifies the model, prompt and settings."""


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


@dataclass(frozen=True, slots=True)
class _Job:
    context: Context
    name: str
    mode: str
    questions: EvaluationSet
    generator: Generator
    file: Path

    def keep(self, sample: Sample, answer: Answer, skipped: str | None = None) -> None:
        line = {"split": self.context.recipe.evaluation.split, **_prediction(sample, answer)}
        append_line(self.file, line | _carried_part(self.questions, sample, skipped))

    def report(self, done: int, total: int) -> None:
        """Report the progress, and raise Interrupted after a signal unless all is done."""
        memory = self.questions.names[self.mode]
        stage = f"evaluate-{self.name}" + (f" ({memory})" if memory else "")
        self.context.progress(stage, done, total, "")
        if done < total:
            self.context.stop.check(f"{stage} is saved after {done} of {total} samples")


def _generate_each(job: _Job, samples: list[Sample]) -> None:
    size, task = job.context.recipe.evaluation.batch_size, job.questions.task
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        for sample, completion in zip(batch, job.generator.complete(batch), strict=True):
            job.keep(sample, read_answer(task, sample, completion))
        job.report(start + len(batch), len(samples))


def _roll_out(job: _Job) -> None:
    questions = job.questions
    total, done = sum(len(episode.numbers) for episode in questions.episodes), 0
    known, size = known_replies(job.file), job.context.recipe.evaluation.batch_size
    for turns in rollout(questions.task, questions.samples, questions.episodes, known, job.generator.reply, size):
        for turn in turns:
            if turn.new:
                job.keep(turn.question, turn.answer, turn.skipped)
        done += len(turns)
        if any(turn.new for turn in turns):
            job.report(done, total)


def known_replies(file: Path) -> dict[str, Reply]:
    """Return sample id -> the reply in a file of predictions."""
    return {line["id"]: reply_of(line) for line in read_lines(file)}


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


def _carried_part(questions: EvaluationSet, sample: Sample, skipped: str | None) -> Record:
    """Return what a replay of a rollout needs: the position in the episode, and the agent memory of the prompt."""
    carried = questions.carried
    if carried is None:
        return {}
    stand = carried.position(sample)
    memory = carried.plain(carried.held(sample))
    return {"chain": stand.episode, "place": stand.position, "memory": memory, "unasked": skipped}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
