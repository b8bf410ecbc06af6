"""What an evaluation asks: the held-out rows, and with which memories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from toolkit.data.agent_memory import Carried
from toolkit.data.loading import SampleSet
from toolkit.data.loading.sample_set import limit
from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.errors import DataError, warn
from toolkit.evaluation.answers import judge
from toolkit.evaluation.context import Context
from toolkit.evaluation.episodes import Chain, find_chains
from toolkit.models.prompts import Prompts
from toolkit.recipe import Recipe
from toolkit.scoring.statistics import EpisodePosition, ScoredAnswer

REFERENCE, OWN, OFF = "reference", "own", "off"
"""Ways of asking, as evaluate.memory names them. Questions that stand alone are asked in the first way only."""

NAMES: Mapping[str, str] = {REFERENCE: "reference memory", OWN: "own memory", OFF: "memory off"}
NO_MEMORY = "no memory in the prompt"
"""What tables call a way."""


@dataclass(frozen=True, slots=True)
class Questions:
    """The held-out samples and how they are asked.

    ``names``: way -> what tables call it. ``stands``: sample id -> where it stands, in the samples' order; ``chains``
    are rolled out, ``behind`` are the samples (by number) that no rollout reaches; empty where questions stand alone.
    """

    prompts: Prompts
    samples: SampleSet
    names: Mapping[str, str]
    stands: Mapping[str, EpisodePosition] = field(default_factory=dict)
    chains: tuple[Chain, ...] = ()
    behind: tuple[int, ...] = ()

    @classmethod
    def of(cls, context: Context) -> "Questions":
        """The questions of a run's [evaluate].

        Raises:
            DataError: there are none.
        """
        recipe, samples = context.recipe, held_out(context)
        prompts = Prompts.of(recipe, context.images)
        carried = prompts.task.carried
        if carried is None:
            return cls(prompts, samples, {REFERENCE: ""})
        samples, stands = _whole_chains(samples, carried, recipe)
        ways: Sequence[str] = recipe.evaluation.memory if carried.shown(samples[0]) else ()
        names = {way: name for way, name in NAMES.items() if way in ways} or {REFERENCE: NO_MEMORY}
        if OWN not in names:
            return cls(prompts, samples, names, stands)
        chains, behind = find_chains(list(stands.values()))
        if not chains:
            warn(
                "evaluate.no_first_steps",
                "no task has its first step, so evaluation with the model's own agent memory is skipped",
                place="[evaluate] memory",
                value=OWN,
            )
            names = {way: name for way, name in names.items() if way != OWN}
        return cls(prompts, samples, names, stands, tuple(chains), tuple(behind))

    @property
    def task(self) -> Task:
        """Whose questions they are."""
        return self.prompts.task

    @property
    def carried(self) -> Carried | None:
        """What goes from question to question."""
        return self.prompts.task.carried

    @property
    def ways(self) -> tuple[str, ...]:
        """How they are asked."""
        return tuple(self.names)

    def asked(self, way: str) -> Sequence[Sample]:
        """The samples with the memory that they are asked with; for ``own`` as read, since only answers tell theirs."""
        if way == OWN:
            left_out = set(self.behind)
            return [sample for number, sample in enumerate(self.samples) if number not in left_out]
        if way == OFF and self.carried:
            return [self.carried.put(sample, self.carried.start(sample)) for sample in self.samples]
        return self.samples

    def judge(self, answers: Sequence[tuple[Sample, Answer]], recipe: Recipe) -> list[ScoredAnswer]:
        """Scores of answers, as rows of an evaluation."""
        return [judge(self.task, sample, answer, recipe.results_by) for sample, answer in answers]


def held_out(context: Context) -> SampleSet:
    """The split that the recipe evaluates on.

    Raises:
        DataError: it has no rows.
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


def _whole_chains(samples: SampleSet, carried: Carried, recipe: Recipe) -> tuple[SampleSet, dict[str, EpisodePosition]]:
    """All rows of the chains that evaluate.max_tasks draws by the seed, in their order, and where each stands."""
    stands = {sample.id: carried.stand(sample) for sample in samples}
    names, most = list(dict.fromkeys(stand.chain for stand in stands.values())), recipe.evaluation.max_tasks
    if most is None or most >= len(names):
        return samples, stands
    drawn = set(Random(f"{recipe.run.seed}/evaluate tasks").sample(names, most))
    kept = [stand.chain in drawn for stand in stands.values()]
    left = {name: stand for name, stand in stands.items() if stand.chain in drawn}
    return samples.take(samples.rows[np.array(kept)]), left
