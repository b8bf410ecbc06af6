"""Select the samples of an evaluation, and the agent memory of their prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from toolkit.data.episodes import AgentMemoryFunctions
from toolkit.data.sample import Answer, Sample
from toolkit.data.sample_set import SampleSet, limit
from toolkit.data.task import Task
from toolkit.errors import DataError, warn
from toolkit.evaluation.answers import score_answer
from toolkit.evaluation.custom_metrics import CustomMetrics
from toolkit.evaluation.episodes import Episode, find_episodes
from toolkit.evaluation.stage_context import Context
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.scoring.statistics import EpisodePosition, ScoredAnswer
from toolkit.tasks import TASKS

REFERENCE, OWN, OFF = "reference", "own", "off"
"""Agent-memory modes, as in evaluate.memory. Tasks without agent memory have only the first one."""

VALIDATION = "validation"
"""Name of the file of class probabilities on the validation split, which thresholds are chosen on."""

NAMES: Mapping[str, str] = {REFERENCE: "reference agent memory", OWN: "own agent memory", OFF: "no agent memory"}
"""Agent-memory mode -> its label in tables. A task whose prompts show no agent memory has the label of ``OFF``."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The samples of an evaluation.

    Attributes:
        prompts: renders samples as prompts.
        samples: the held-out samples.
        names: agent-memory mode -> its label in tables.
        positions: sample id -> its position in an episode, in the order of the samples. Empty without agent memory.
        episodes: the episodes to roll out.
        unreachable: indices of the samples that no rollout reaches.
        validation: samples of the validation split that get class probabilities. Empty: thresholds are chosen on the
            evaluated split.
        custom: the custom metrics of the recipe. None: there are none.
    """

    prompts: Prompts
    samples: SampleSet
    names: Mapping[str, str]
    positions: Mapping[str, EpisodePosition] = field(default_factory=dict)
    episodes: tuple[Episode, ...] = ()
    unreachable: tuple[int, ...] = ()
    validation: Sequence[Sample] = ()
    custom: CustomMetrics | None = None

    @classmethod
    def of(cls, context: Context) -> "EvaluationSet":
        """Return the samples of a run's [evaluate].

        Raises:
            DataError: there are none.
        """
        recipe, samples = context.recipe, held_out(context)
        prompts = Prompts.of(recipe, context.images)
        agent_memory, custom = prompts.task.agent_memory, _custom_metrics(context)
        if agent_memory is None:
            validation = _for_thresholds(context, prompts.task)
            return cls(prompts, samples, {REFERENCE: ""}, validation=validation, custom=custom)
        samples, positions = _whole_episodes(samples, agent_memory, recipe)
        modes: Sequence[str] = recipe.evaluation.memory if agent_memory.shown(samples[0]) else ()
        names = {mode: name for mode, name in NAMES.items() if mode in modes} or {REFERENCE: NAMES[OFF]}
        if OWN not in names:
            return cls(prompts, samples, names, positions, custom=custom)
        episodes, unreachable = find_episodes(list(positions.values()))
        if not episodes:
            warn(
                "evaluate.no_first_steps",
                "no task has its first step, so evaluation with the model's own agent memory is skipped",
                place="[evaluate] memory",
                value=OWN,
            )
            names = {mode: name for mode, name in names.items() if mode != OWN}
        return cls(prompts, samples, names, positions, tuple(episodes), tuple(unreachable), custom=custom)

    @property
    def task(self) -> Task:
        """Return the task of the samples."""
        return self.prompts.task

    @property
    def agent_memory(self) -> AgentMemoryFunctions | None:
        """Return the agent memory of the task, or None."""
        return self.prompts.task.agent_memory

    @property
    def modes(self) -> tuple[str, ...]:
        """Return the agent-memory modes."""
        return tuple(self.names)

    def custom_names(self, rows: Sequence[ScoredAnswer]) -> tuple[str, ...]:
        """Return the names of the custom metrics in rows."""
        taken = self.custom.taken if self.custom else frozenset(rows[0].scores if rows else ())
        return tuple(name for name in (rows[0].scores if rows else ()) if name not in taken)

    def samples_of(self, mode: str) -> Sequence[Sample]:
        """Return the samples with the agent memory of a mode. That of ``own`` is known only during the rollout."""
        if mode == VALIDATION:
            return self.validation
        if mode == OWN:
            left_out = set(self.unreachable)
            return [sample for number, sample in enumerate(self.samples) if number not in left_out]
        if mode == OFF and self.agent_memory:
            return [self.agent_memory.put(sample, self.agent_memory.start(sample)) for sample in self.samples]
        return self.samples

    def score_answers(self, answers: Sequence[tuple[Sample, Answer]], recipe: Recipe) -> list[ScoredAnswer]:
        """Return the scores of answers, as rows of an evaluation.

        Raises:
            MetricError: a custom metric failed.
        """
        rows = [score_answer(self.task, sample, answer, recipe.results_by) for sample, answer in answers]
        each = self.custom.values(answers).each if self.custom and rows else {}
        return [
            replace(row, scores={**row.scores, **{name: values[number] for name, values in each.items()}})
            for number, row in enumerate(rows)
        ]


def _custom_metrics(context: Context) -> CustomMetrics | None:
    entries, task = context.recipe.evaluation.metrics, TASKS[context.recipe.dataset.task]
    if not entries:
        return None
    # The names of the scores are known only from an answer.
    sample = context.data.train[0]
    taken = frozenset(task.scores(sample, task.parse(task.target(sample), sample)))
    return CustomMetrics(entries, context.run.stage_folder("metrics"), taken)


def held_out(context: Context) -> SampleSet:
    """Return the samples of the evaluated split, up to evaluate.limit.

    Raises:
        DataError: the split has no rows.
    """
    section = context.recipe.evaluation
    samples: SampleSet = getattr(context.data, section.split)
    if section.limit is not None:
        samples = samples.take(limit(samples.rows, section.limit, context.recipe.run.seed, "evaluate"))
    if not len(samples):
        raise DataError(
            "evaluate.split_empty",
            "the evaluated split must have rows",
            place="[evaluate] split",
            value=section.split,
            remedy="Name a file for it in [data], or give it a fraction in [data.split].",
        )
    return samples


def _for_thresholds(context: Context, task: Task) -> Sequence[Sample]:
    """Return the samples to choose thresholds on: those of the validation split if the test split is evaluated."""
    section = context.recipe.evaluation
    if task.choices is None or not section.probabilities or section.split == VALIDATION:
        return ()
    samples = context.data.validation
    return samples.take(limit(samples.rows, section.limit, context.recipe.run.seed, "thresholds"))


def _whole_episodes(
    samples: SampleSet, agent_memory: AgentMemoryFunctions, recipe: Recipe
) -> tuple[SampleSet, dict[str, EpisodePosition]]:
    """Return all rows of at most evaluate.max_tasks episodes, drawn with the seed, and their positions."""
    positions = {sample.id: agent_memory.position(sample) for sample in samples}
    names, most = list(dict.fromkeys(position.episode for position in positions.values())), recipe.evaluation.max_tasks
    if most is None or most >= len(names):
        return samples, positions
    drawn = set(Random(f"{recipe.run.seed}/evaluate tasks").sample(names, most))
    chosen = {name: position for name, position in positions.items() if position.episode in drawn}
    return samples.take(samples.rows[np.array([name in chosen for name in positions])]), chosen
