"""Explanations of an answer's score, reward by reward."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toolkit.data.sample import Answer, Sample
from toolkit.tasks.lesion import rewards as lesion
from toolkit.tasks.mcq import rewards as mcq
from toolkit.tasks.steps import rewards as steps
from toolkit.tasks.vqa import rewards as vqa
from toolkit.training.rewards.table import RewardTable

WHY: Mapping[str, Mapping[str, Callable[[Sample, Answer], str]]] = {
    "mcq": mcq.WHY,
    "vqa": vqa.WHY,
    "lesion": lesion.WHY,
    "steps": steps.WHY,
}
"""Maps task and reward to a function that returns the reason for the value."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One reward of one answer. ``value`` is in [0, 1] before the weight, or None if the reward does not apply."""

    reward: str
    weight: float
    value: float | None
    why: str

    @property
    def points(self) -> float:
        """Return the contribution to the total."""
        return 0.0 if self.value is None else self.weight * self.value

    def __str__(self) -> str:
        value = "   -" if self.value is None else f"{self.value:.2f}"
        return f"{self.reward:<12} {value} x {self.weight:g} = {self.points:.3f}  {self.why}"


def explain(sample: Sample, answer: Answer, table: RewardTable) -> list[Explanation]:
    """Return the rewards in the table's order, each with its reason. Their points sum to the total of ``table.score``.

    Raises:
        RewardError: As ``RewardTable.score``.
    """
    components = table.score(sample, answer).components
    return [
        Explanation(name, table.weights[name], value, _why(name, sample, answer, table))
        for name, value in components.items()
    ]


def _why(name: str, sample: Sample, answer: Answer, table: RewardTable) -> str:
    known = WHY[table.task].get(name)
    if known is not None:
        return known(sample, answer)
    doc = inspect.getdoc(table.rewards[name])
    return doc.splitlines()[0] if doc else "custom reward (the first line of its docstring is shown here)"
