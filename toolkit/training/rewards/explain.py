"""Why an answer earned what it earned, reward by reward."""

import inspect
from dataclasses import dataclass

from toolkit.data.sample import Answer, Sample
from toolkit.training.rewards.table import RewardTable


@dataclass(frozen=True, slots=True)
class Explanation:
    """One reward of one answer: ``value`` in [0, 1] before the weight, None where it does not apply."""

    reward: str
    weight: float
    value: float | None
    why: str

    @property
    def points(self) -> float:
        """What it adds to the total."""
        return 0.0 if self.value is None else self.weight * self.value

    def __str__(self) -> str:
        value = "   -" if self.value is None else f"{self.value:.2f}"
        return f"{self.reward:<12} {value} x {self.weight:g} = {self.points:.3f}  {self.why}"


def explain(sample: Sample, answer: Answer, table: RewardTable) -> list[Explanation]:
    """The rewards of the table in its order, each with its reason; their points add up to ``table.score``'s total.

    Raises:
        RewardError: as ``RewardTable.score``.
    """
    components = table.score(sample, answer).components
    return [
        Explanation(name, table.weights[name], value, _why(name, sample, answer, table))
        for name, value in components.items()
    ]


def _why(name: str, sample: Sample, answer: Answer, table: RewardTable) -> str:
    known = table.task.why.get(name)
    if known is not None:
        return known(sample, answer)
    doc = inspect.getdoc(table.rewards[name])
    return doc.splitlines()[0] if doc else "your own reward (its docstring's first line stands here)"
