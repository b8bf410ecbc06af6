"""Parse a completion and score it, in the same way for rewards, evaluation and prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.models.backend import Completion
from toolkit.scoring.statistics import ScoredAnswer


def read_answer(task: Task, sample: Sample, completion: Completion) -> Answer:
    """Parse a completion, and note whether it was truncated at the token limit, and the class probabilities."""
    parsed = task.parse(completion.text, sample)
    return replace(parsed, truncated=completion.truncated, probabilities=completion.probabilities)


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one prompt.

    Attributes:
        completion: the completion. Empty if the prompt was skipped.
        skipped: why the prompt was skipped, or None.
    """

    completion: Completion
    skipped: str | None = None


def reply_of(line: Mapping[str, Any]) -> Reply:
    """Return the reply that a line of a predictions file has."""
    completion = Completion(line["completion"], 0, line["truncated"], line.get("probabilities"))
    return Reply(completion, line.get("skipped"))


def read_reply(task: Task, sample: Sample, reply: Reply) -> Answer:
    """Parse a reply. A skipped prompt counts as a failure, with the reason as its problem."""
    if reply.skipped is not None:
        return Answer("", {}, reply.skipped)
    return read_answer(task, sample, reply.completion)


def score_answer(task: Task, sample: Sample, answer: Answer, by: Sequence[str]) -> ScoredAnswer:
    """Return the scores of an answer as one row of an evaluation."""
    return ScoredAnswer(
        id=sample.id,
        group=sample.group,
        scores=task.scores(sample, answer),
        label=task.labels(sample, answer),
        by={name: str(value) for name in by if (value := _value(sample, name)) is not None},
        truncated=answer.truncated,
        problem=answer.problem,
        part=task.set_metrics.part(sample, answer) if task.set_metrics else None,
        probabilities=answer.probabilities,
        truth=task.truth(sample),
        place=sample.shown,
    )


def _value(sample: Sample, name: str) -> object:
    """Return the value of a column: a field, otherwise a part of the reference, which no prompt shows."""
    value = sample.fields.get(name)
    return sample.reference.get(name) if value is None else value
