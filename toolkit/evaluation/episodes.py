"""A rollout: the questions of a chain in their order, each with the memory that the model's own answers left.

Chains are asked beside each other: round k asks the k-th question of every chain that has one. What is known already
is not asked again but read: the memories of an interrupted rollout, or of a finished one, come back from its lines.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.agent_memory import Carried
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.evaluation.answers import Reply, read_reply
from toolkit.scoring.statistics import EpisodePosition


@dataclass(frozen=True, slots=True)
class Chain:
    """Numbers of samples in the order in which they are asked, up to the first place that no sample fills."""

    name: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One question as it was asked, its answer, the memory after it, and whether it was asked just now."""

    question: Sample
    answer: Answer
    after: Any
    unasked: str | None
    new: bool


Ask = Callable[[Sequence[Sample]], Sequence[Reply]]
"""Questions of one batch -> their replies, in order."""


def find_chains(stands: Sequence[EpisodePosition]) -> tuple[list[Chain], list[int]]:
    """The chains in the order of their first samples, and the samples behind a missing place.

    Those cannot be asked: the memory that they need would have come from an answer that nobody gave.
    """
    parts: dict[str, list[int]] = {}
    for number, stand in enumerate(stands):
        parts.setdefault(stand.chain, []).append(number)
    chains, behind = [], []
    for name, numbers in parts.items():
        numbers.sort(key=lambda number: stands[number].place)
        reached = [number for place, number in enumerate(numbers, start=1) if stands[number].place == place]
        chains.append(Chain(name, tuple(reached)))
        behind += numbers[len(reached) :]
    return [chain for chain in chains if chain.numbers], sorted(behind)


def rollout(
    task: Task,
    samples: Sequence[Sample],
    chains: Sequence[Chain],
    known: Mapping[str, Reply],
    ask: Ask,
    batch_size: int,
) -> Iterator[list[Turn]]:
    """The turns of all chains, a batch at a time; whoever takes a batch may keep it before the next is asked.

    The batches are the same whatever is known: one of which something is missing is asked whole, so that a rollout
    that goes on gives what one that was never interrupted gives.

    Args:
        task: one whose answers carry something (``Task.carried``).
        samples: what the chains' numbers count.
        chains: as ``find_chains`` gives them.
        known: id -> the reply that is kept already.
        ask: called with the questions of a batch.
        batch_size: questions a batch.
    """
    carried = _carried(task)
    memories: dict[str, Any] = {}
    for place in range(max((len(chain.numbers) for chain in chains), default=0)):
        going = [chain for chain in chains if len(chain.numbers) > place]
        for start in range(0, len(going), batch_size):
            batch = going[start : start + batch_size]
            turns = _turns(task, [_question(carried, samples, chain, place, memories) for chain in batch], known, ask)
            memories |= {chain.name: turn.after for chain, turn in zip(batch, turns, strict=True)}
            yield turns


def _carried(task: Task) -> Carried:
    if task.carried is None:
        raise TypeError(f"answers of the task {task.name} carry nothing")
    return task.carried


def _question(
    carried: Carried, samples: Sequence[Sample], chain: Chain, place: int, memories: Mapping[str, Any]
) -> Sample:
    sample = samples[chain.numbers[place]]
    return carried.put(sample, memories[chain.name] if place else carried.start(sample))


def _turns(task: Task, questions: Sequence[Sample], known: Mapping[str, Reply], ask: Ask) -> list[Turn]:
    complete = all(question.id in known for question in questions)
    replies = [known[question.id] for question in questions] if complete else ask(questions)
    turns = []
    for question, new in zip(questions, replies, strict=True):
        reply = known.get(question.id, new)
        answer = read_reply(task, question, reply)
        carried = _carried(task)
        after = carried.advance(carried.held(question), answer)
        turns.append(Turn(question, answer, after, reply.unasked, question.id not in known))
    return turns
