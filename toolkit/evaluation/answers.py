"""From a completion to an Answer and a judged row: one way, for rewards, evaluation and prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.models.backend import Completion
from toolkit.scoring.statistics import ScoredAnswer


def read_answer(task: Task, sample: Sample, completion: Completion) -> Answer:
    """What the task's parser finds, with the word on whether the token limit came first."""
    return replace(task.parse(completion.text, sample), truncated=completion.truncated)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one question: a completion, or why it was not asked at all (the completion is empty then)."""

    completion: Completion
    unasked: str | None = None


def reply_of(line: Mapping[str, Any]) -> Reply:
    """The reply that a line of a file of answers keeps."""
    return Reply(Completion(line["completion"], 0, line["truncated"]), line.get("unasked"))


def read_reply(task: Task, sample: Sample, reply: Reply) -> Answer:
    """``read_answer``; a question that was not asked is a failure, with the reason as its problem."""
    if reply.unasked is not None:
        return Answer("", {}, reply.unasked)
    return read_answer(task, sample, reply.completion)


def judge(task: Task, sample: Sample, answer: Answer, by: Sequence[str]) -> ScoredAnswer:
    """An answer's scores as one row of an evaluation."""
    return ScoredAnswer(
        id=sample.id,
        group=sample.group,
        scores=task.scores(sample, answer),
        label=task.labels(sample, answer),
        by={name: str(value) for name in by if (value := _value(sample, name)) is not None},
        truncated=answer.truncated,
        problem=answer.problem,
    )


def _value(sample: Sample, name: str) -> object:
    """What results are given by: a field, or where there is none a part of the reference, which no prompt shows."""
    value = sample.fields.get(name)
    return sample.reference.get(name) if value is None else value
