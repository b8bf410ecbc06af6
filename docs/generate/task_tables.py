"""The tables of tasks, rewards and scores, from the Task objects and their docstrings."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from docs.generate.docstrings import Docstring, noun, parse
from toolkit.tasks import TASKS


def reward_table() -> str:
    """Return the rewards of all tasks with weight and definition."""
    lines = ["| task | reward | weight | definition |", "|---|---|---|---|"]
    for task in TASKS.values():
        for number, (name, reward) in enumerate(task.rewards.items()):
            weight = float(task.reward_weights[name])
            lines.append(f"| {'' if number else task.name} | `{name}` | {weight} | {noun(_doc(reward).summary)} |")
    return "\n".join(lines)


def reward_lists() -> str:
    """Return the definition of every reward with its worked example."""
    return "\n\n".join("\n\n".join([f"### {task.name}", *_rewards(task.rewards)]) for task in TASKS.values())


def score_table() -> str:
    """Return the scores of all tasks with their definitions."""
    lines = ["| task | score | definition |", "|---|---|---|"]
    for task in TASKS.values():
        for number, (name, text) in enumerate(_doc(task.scores).sections["Scores"].items()):
            lines.append(f"| {'' if number else task.name} | `{name}` | {text} |")
    return "\n".join(lines)


def data_table() -> str:
    """Return the tasks with their fields and scores, for the README."""
    lines = ["| `data.task` | data | a row needs | main score |", "|---|---|---|---|"]
    for task in TASKS.values():
        needs = ", ".join(sorted(field.replace("|", " or ") for field in task.required))
        lines.append(f"| `{task.name}` | {task.description} | {needs} | `{task.primary}` |")
    return "\n".join(lines)


def _rewards(rewards: Any) -> Iterator[str]:
    for name, reward in rewards.items():
        found = _doc(reward)
        text = " ".join(filter(None, (found.summary, found.details.replace("\n\n", " "))))
        yield f"`{name}`: {text}"
        if found.example:
            yield f"```python\n{found.example}\n```"


def _doc(function: Callable[..., Any]) -> Docstring:
    return parse(inspect.getdoc(function) or "")
