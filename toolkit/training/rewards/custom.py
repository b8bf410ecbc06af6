"""Custom rewards: functions ``(sample, answer) -> float | None`` in a Python file next to the recipe."""

import inspect
from pathlib import Path

from toolkit.data.sample import Reward
from toolkit.errors import Problem, RewardError
from toolkit.recipe.user_code import UserCode, load_user_code

_SHAPE = "def my_reward(sample, answer): return 0.0 to 1.0, or None if it does not apply"


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
