"""The questions that no answer is written for yet, asked; every answer is one flushed line."""

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
from toolkit.evaluation.generate import Asker
from toolkit.evaluation.prompts import OWN, REFERENCE, Questions
from toolkit.models import Backend
from toolkit.models.lengths import check_lengths
from toolkit.runfolder import Record, append_line, read_lines, remove_partial_line

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"
PARTIAL = "predictions.{}.partial.jsonl"
"""Its name says what is asked and how: answers of another model, prompt or limit are not taken for these."""


def answers_file(way: str, digest: str | None = None) -> str:
    """The file of a way's answers; with a digest while they are not complete."""
    if digest is None:
        return PREDICTIONS if way == REFERENCE else f"predictions.{way}.jsonl"
    return PARTIAL.format(digest if way == REFERENCE else f"{way}-{digest}")


def ask_open(
    context: Context,
    name: str,
    questions: Questions,
    files: Mapping[str, Path],
    weights: Path | None,
    backend: Backend | None = None,
) -> None:
    """Complete the files (way -> JSONL); the model is loaded only if something is missing.

    Raises:
        DataError: a row is too long.
        Interrupted: a signal came; what was answered is kept.
    """
    waiting: dict[str, list[Sample]] = {}
    for way, file in files.items():
        remove_partial_line(file)
        done = {line["id"] for line in read_lines(file)}
        if missing := [sample for sample in questions.asked(way) if sample.id not in done]:
            waiting[way] = missing
    if not waiting:
        return
    recipe = context.recipe
    stored = weights is not None and weights != context.weights and (weights / "config.json").is_file()
    asker = Asker.load(recipe, questions.prompts, weights, backend, stored=stored)
    if REFERENCE in waiting:
        most, tokens = recipe.model.max_tokens, recipe.evaluation.max_completion_tokens
        processor = asker.policy.processor
        check_lengths(processor, questions.prompts, waiting[REFERENCE], most, tokens, tell=context.no_step_yet)
    for way, samples in waiting.items():
        job = _Job(context, name, way, questions, asker, files[way])
        if way == OWN:
            _roll_out(job)
        else:
            _ask_each(job, samples)


@dataclass(frozen=True, slots=True)
class _Job:
    context: Context
    name: str
    way: str
    questions: Questions
    asker: Asker
    file: Path

    def keep(self, sample: Sample, answer: Answer, unasked: str | None = None) -> None:
        line = {"split": self.context.recipe.evaluation.split, **_prediction(sample, answer)}
        append_line(self.file, line | _carried_part(self.questions, sample, unasked))

    def tell(self, done: int, total: int) -> None:
        """Raises Interrupted once a signal has come, unless all is done."""
        memory = self.questions.names[self.way]
        stage = f"evaluate-{self.name}" + (f" ({memory})" if memory else "")
        self.context.progress(stage, done, total, "")
        if done < total:
            self.context.stop.check(f"{stage} is saved after {done} of {total} questions")


def _ask_each(job: _Job, samples: list[Sample]) -> None:
    size, task = job.context.recipe.evaluation.batch_size, job.questions.task
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        for sample, completion in zip(batch, job.asker.complete(batch), strict=True):
            job.keep(sample, read_answer(task, sample, completion))
        job.tell(start + len(batch), len(samples))


def _roll_out(job: _Job) -> None:
    questions = job.questions
    total, done = sum(len(chain.numbers) for chain in questions.chains), 0
    known, size = known_replies(job.file), job.context.recipe.evaluation.batch_size
    for turns in rollout(questions.task, questions.samples, questions.chains, known, job.asker.reply, size):
        for turn in turns:
            if turn.new:
                job.keep(turn.question, turn.answer, turn.unasked)
        done += len(turns)
        if any(turn.new for turn in turns):
            job.tell(done, total)


def known_replies(file: Path) -> dict[str, Reply]:
    """Sample id -> the reply that a file of answers holds."""
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


def _carried_part(questions: Questions, sample: Sample, unasked: str | None) -> Record:
    """What makes a rollout one that can be replayed: where the question stands and the memory it was asked with."""
    carried = questions.carried
    if carried is None:
        return {}
    stand = carried.stand(sample)
    memory = carried.plain(carried.held(sample))
    return {"chain": stand.chain, "place": stand.place, "memory": memory, "unasked": unasked}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
