"""Rewards: the task's and custom ones with their weights, the score of an answer, and the reason for a score."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from toolkit.data.sample import Answer, Reward, Sample
from toolkit.errors import Problem, RecipeError, RewardError
from toolkit.identifiers import Description, without_names
from toolkit.recipe import Recipe, Rewards
from toolkit.recipe.user_code import TimeLimitExceeded, UserCode, call_within, load_user_code, raised_at
from toolkit.tasks import TASKS, Task

RESERVED = frozenset({"custom", "time_limit", "total"})
"""Names with another meaning: recipe keys and a log column."""

_ROUNDING = 1e-9
_SHAPE = "def my_reward(sample, answer): return 0.0 to 1.0, or None if it does not apply"


@dataclass(frozen=True, slots=True)
class RewardScore:
    """The score of an answer.

    Attributes:
        total: The weighted sum, from 0 to the sum of the weights.
        components: The value of each reward in [0, 1] before its weight, or None if the reward does not apply.
    """

    total: float
    components: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class RewardTable:
    """The rewards of a recipe.

    Attributes:
        task: The task.
        rewards: Maps names to rewards.
        weights: Maps the same names to weights above 0.
        time_limit: Seconds that one call of a custom reward may take.
    """

    task: Task
    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    time_limit: float = Rewards().time_limit

    def score(self, sample: Sample, answer: Answer) -> RewardScore:
        """Return the weighted sum of the rewards that apply.

        The sum is not divided by the weights that apply. Whether a reward applies depends on the sample, for example on
        a reference explanation, so it is equal for all completions of a prompt, and GRPO compares only those. Division
        would make the same letter worth more in samples without a report.

        Raises:
            RewardError: A reward raised an exception or returned neither None nor a number in [0, 1], a custom reward
                took too long, or no reward applies to the sample.
        """
        components = {name: self._value(name, sample, answer) for name in self.rewards}
        applying = {name: value for name, value in components.items() if value is not None}
        if not applying:
            raise RewardError(
                "rewards.none_applies",
                "at least one reward must apply to every sample",
                place=sample.shown,
                value=sorted(components),
                remedy="Give a weight to a reward that applies, or remove such rows from the training data.",
            )
        return RewardScore(math.fsum(self.weights[name] * value for name, value in applying.items()), components)

    def _value(self, name: str, sample: Sample, answer: Answer) -> float | None:
        limit = None if name in self.task.rewards else self.time_limit
        return _value(name, self.rewards[name], (sample, answer), limit)


def recipe_rewards(recipe: Recipe, base: Path = Path()) -> RewardTable:
    """Return the rewards of a recipe. See ``reward_table``.

    Args:
        recipe: The recipe. Its task has rewards of its own.
        base: The folder that relative paths of custom rewards start from.
    """
    table = reward_table(TASKS[recipe.dataset.task], recipe.reward_weights, recipe.rewards.custom, base)
    return replace(table, time_limit=recipe.rewards.time_limit)


def reward_table(task: Task, weights: Mapping[str, float], custom: Sequence[str], base: Path) -> RewardTable:
    """Return the task's rewards and the custom ones, with the weights of the recipe.

    A reward that ``weights`` does not name has its default weight, which is 1 for a custom reward. A reward with
    weight 0 is neither computed nor logged. Negative weights are rejected, because totals are reported on a scale from
    0. A penalty is expressed as its complement (1 is good).

    Args:
        task: The task, which has rewards of its own.
        weights: Maps rewards to weights, as ``recipe.reward_weights``.
        custom: Custom rewards, ``file.py:function``.
        base: The recipe's folder, which the files' relative paths start from.

    Raises:
        RecipeError: All problems together: unknown or taken names, weights that are negative or not finite, no weight
            above 0, and files or functions that cannot be loaded.
    """
    problems: list[Problem] = []
    rewards = {**task.rewards, **_load_all(custom, base, task.rewards, problems)}
    # A custom reward that could not be loaded is reported already. Its weight is not a second problem.
    known = {**rewards, **{custom_name(entry): None for entry in custom}}
    all_weights = {**task.reward_weights, **dict.fromkeys(map(custom_name, custom), 1.0), **weights}
    problems += [problem for name in all_weights if (problem := _weight_problem(name, all_weights[name], list(known)))]
    if not problems and not any(all_weights.values()):
        problems.append(
            Problem(
                "rewards.all_weights_zero",
                "at least one weight must be above 0",
                "rewards",
                value=all_weights,
                remedy="Give a reward a weight.",
            )
        )
    if problems:
        raise RecipeError(problems)
    used = {name: reward for name, reward in rewards.items() if all_weights[name] > 0}
    return RewardTable(task, used, {name: float(all_weights[name]) for name in used})


def check_rewards_apply(task: Task, table: RewardTable, samples: Sequence[Sample]) -> None:
    """Check that at least one reward applies to every row. ``format`` applies to all rows.

    Raises:
        RewardError: No reward applies to some row. The error names the row.
    """
    if "format" in table.weights:
        return
    for sample in samples:
        table.score(sample, task.parse(task.target(sample), sample))


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
    known = table.task.why.get(name)
    if known is not None:
        return known(sample, answer)
    doc = inspect.getdoc(table.rewards[name])
    return doc.splitlines()[0] if doc else "custom reward (the first line of its docstring is shown here)"


def _value(name: str, reward: Reward, scored: tuple[Sample, Answer], limit: float | None) -> float | None:
    place = f"reward {name}, {scored[0].shown}"
    try:
        value = reward(*scored) if limit is None else call_within(limit, reward, *scored)
    except TimeLimitExceeded as error:
        raise RewardError(
            "rewards.time_limit_exceeded",
            f"a custom reward must return within {limit:g} seconds (rewards.time_limit)",
            place=place,
            value=f"no result at {error.place}",
            remedy="Correct the function, or raise rewards.time_limit. The same command resumes the run.",
        ) from error
    except Exception as error:  # a score of 0 instead would train the model on a bug of the reward
        raise RewardError(
            "rewards.function_raised",
            "a reward must not raise an exception",
            place=place,
            value=Description(f"{type(error).__name__}: {without_names(str(error))}"),
            remedy=f"Correct {raised_at(error)}.",
        ) from error
    return None if value is None else _unit(value, place)


def _unit(value: object, place: str) -> float:
    """Return the value as a float in [0, 1]. A sum of fractions may exceed an end by rounding."""
    number = float(value) if isinstance(value, Real) else math.nan
    if not -_ROUNDING <= number <= 1 + _ROUNDING:
        rule, remedy = "a reward must return a number from 0 to 1, or None", "Correct the function."
        raise RewardError("rewards.value_out_of_range", rule, place=place, value=value, remedy=remedy)
    return min(max(number, 0.0), 1.0)


def _load_all(
    custom: Sequence[str], base: Path, taken: Mapping[str, Reward], problems: list[Problem]
) -> dict[str, Reward]:
    loaded: dict[str, Reward] = {}
    for position, entry in enumerate(custom):
        place, name = f"rewards.custom[{position}]", custom_name(entry)
        if name in RESERVED or name in taken or name in map(custom_name, custom[:position]):
            problems.append(
                Problem(
                    "rewards.name_taken", f"the name {name} must not be in use", place, entry, "Rename the function."
                )
            )
            continue
        try:
            loaded[name] = load_custom(entry, base)
        except RewardError as error:
            problems.append(replace(error.problem, place=f"{place}: {error.place}"))
    return loaded


def _weight_problem(name: str, weight: float, known: list[str]) -> Problem | None:
    place = f"rewards.{name}"
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"Did you mean {close[0]}?" if close else f"Choose one of: {', '.join(known)}."
        return Problem("rewards.name_unknown", "must be the name of a reward", place, name, remedy)
    if not math.isfinite(weight):
        return Problem("rewards.weight_not_finite", "a weight must be finite", place, weight, "Correct it.")
    if weight < 0:
        remedy = "Return 1 minus the penalty instead."
        return Problem("rewards.weight_negative", "a weight must be at least 0", place, weight, remedy)
    return None


# Custom rewards: functions in a Python file next to the recipe.


def custom_name(entry: str) -> str:
    """Return the name of the reward in weights and logs, which is the function's name.

    >>> custom_name("my_rewards.py:mentions_side")
    'mentions_side'
    """
    return entry.rpartition(":")[2]


def load_custom(entry: str, base: Path) -> Reward:
    """Return the function that ``file.py:function`` names.

    Args:
        entry: ``file.py:function``.
        base: The recipe's folder, which relative paths start from.

    Raises:
        RewardError: As ``load_user_code``, or the function does not take two arguments.
    """
    return _checked(load_user_code(entry, base, _REWARD), entry_place(entry, base))


def entry_place(entry: str, base: Path) -> str:
    """Return ``file.py:function`` with the absolute path of the file."""
    file, _, name = entry.rpartition(":")
    return f"{(base / file).resolve()}:{name}"


def _error(problem: Problem) -> RewardError:
    return RewardError(problem.code, problem.rule, place=problem.place, value=problem.value, remedy=problem.remedy)


_REWARD = UserCode("rewards", "function", "a custom reward", "my_rewards.py:my_reward", _error, inspect.isfunction)


def _checked(function: object, place: str) -> Reward:
    if not callable(function):
        raise RewardError(
            "rewards.not_a_function",
            "a reward must be a function",
            place=place,
            value=function,
            remedy=f"Write: {_SHAPE}.",
        )
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise RewardError(
            "rewards.signature_wrong",
            "a reward must take two positional arguments, sample and answer",
            place=place,
            value=str(signature),
            remedy=f"Write: {_SHAPE}.",
        ) from error
    return function
