"""Rollouts: the steps of an episode in order, each with the agent memory that the model's own completions left.

Episodes advance in parallel: round k generates the k-th step of every episode that has one. Known completions are not
generated again: an interrupted or finished rollout is replayed from its predictions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.episodes import AgentMemoryFunctions
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.errors import DataError
from toolkit.evaluation.answers import Reply, read_reply
from toolkit.recipe import Recipe
from toolkit.scoring.statistics import EpisodePosition
from toolkit.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode.

    Attributes:
        name: the id of the task.
        numbers: indices of its samples in order, up to the first missing step.
    """

    name: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of a rollout.

    Attributes:
        sample: the sample with the agent memory of its prompt.
        answer: the parsed completion.
        after: the agent memory after it.
        skipped: why the prompt was skipped, or None.
        new: whether the completion was generated now.
    """

    sample: Sample
    answer: Answer
    after: Any
    skipped: str | None
    new: bool


Generate = Callable[[Sequence[Sample]], Sequence[Reply]]
"""Prompts of one batch -> their replies, in order."""


def find_episodes(positions: Sequence[EpisodePosition]) -> tuple[list[Episode], list[int]]:
    """Return the episodes in the order of their first samples, and the samples after a missing step.

    A rollout stops at the first missing step, because the agent memory for later steps is unknown.
    """
    parts: dict[str, list[int]] = {}
    for number, position in enumerate(positions):
        parts.setdefault(position.episode, []).append(number)
    episodes, unreachable = [], []
    for name, numbers in parts.items():
        numbers.sort(key=lambda number: positions[number].position)
        reached = [number for place, number in enumerate(numbers, start=1) if positions[number].position == place]
        episodes.append(Episode(name, tuple(reached)))
        unreachable += numbers[len(reached) :]
    return [episode for episode in episodes if episode.numbers], sorted(unreachable)


def task_with_memory(recipe: Recipe) -> tuple[Task, AgentMemoryFunctions]:
    """Return the recipe's task and its agent memory.

    Raises:
        DataError: the task has no agent memory.
    """
    task = TASKS[recipe.dataset.task]
    if task.agent_memory is None:
        able = ", ".join(name for name, one in TASKS.items() if one.agent_memory)
        raise DataError(
            "predict.task_without_memory",
            f"step-by-step prediction needs a task with agent memory ({able})",
            place="[data] task",
            value=recipe.dataset.task,
        )
    return task, task.agent_memory


def rollout(
    task: Task,
    samples: Sequence[Sample],
    episodes: Sequence[Episode],
    known: Mapping[str, Reply],
    generate: Generate,
    batch_size: int,
) -> Iterator[list[Turn]]:
    """Yield the turns of all episodes, one batch at a time. The caller may save a batch before the next is generated.

    The batches do not depend on what is known. A batch with a missing completion is generated as a whole, so that a
    resumed rollout is equal to an uninterrupted one.

    Args:
        task: a task with agent memory (``Task.agent_memory``).
        samples: the samples that the episodes index.
        episodes: the result of ``find_episodes``.
        known: sample id -> its saved reply.
        generate: generates the replies of a batch.
        batch_size: prompts per batch.
    """
    if (agent_memory := task.agent_memory) is None:
        raise TypeError(f"the task {task.name} has no agent memory")
    memories: dict[str, Any] = {}
    for place in range(max((len(episode.numbers) for episode in episodes), default=0)):
        going = [episode for episode in episodes if len(episode.numbers) > place]
        for start in range(0, len(going), batch_size):
            batch = going[start : start + batch_size]
            prompted = [_with_agent_memory(agent_memory, samples, episode, place, memories) for episode in batch]
            turns = _turns(task, agent_memory, prompted, known, generate)
            memories |= {episode.name: turn.after for episode, turn in zip(batch, turns, strict=True)}
            yield turns


def _with_agent_memory(
    agent_memory: AgentMemoryFunctions,
    samples: Sequence[Sample],
    episode: Episode,
    place: int,
    memories: Mapping[str, Any],
) -> Sample:
    sample = samples[episode.numbers[place]]
    return agent_memory.put(sample, memories[episode.name] if place else agent_memory.start(sample))


def _turns(
    task: Task,
    agent_memory: AgentMemoryFunctions,
    samples: Sequence[Sample],
    known: Mapping[str, Reply],
    generate: Generate,
) -> list[Turn]:
    complete = all(sample.id in known for sample in samples)
    replies = [known[sample.id] for sample in samples] if complete else generate(samples)
    turns = []
    for sample, new in zip(samples, replies, strict=True):
        reply = known.get(sample.id, new)
        answer = read_reply(task, sample, reply)
        after = agent_memory.advance(agent_memory.held(sample), answer)
        turns.append(Turn(sample, answer, after, reply.skipped, sample.id not in known))
    return turns
