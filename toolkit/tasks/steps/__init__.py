"""GUI steps in medical software: ordered rows, agent memory, and actions with coordinates."""

from collections.abc import Mapping

from toolkit.data.sample import Answer, Sample
from toolkit.data.task import Task
from toolkit.tasks.steps import rewards as rewards
from toolkit.tasks.steps.agent_memory import EMPTY, Memory, advance, replay
from toolkit.tasks.steps.episodes import CARRIED
from toolkit.tasks.steps.metrics import action_baseline, baseline, repeat_last, target_baseline
from toolkit.tasks.steps.order import HIDDEN, link
from toolkit.tasks.steps.parse import parse
from toolkit.tasks.steps.prompt import instruction, question, target
from toolkit.tasks.steps.schema import COLUMNS, read
from toolkit.tasks.steps.settings import step_settings

__all__ = ["EMPTY", "STEPS", "Memory", "advance", "repeat_last", "replay"]


def scores(sample: Sample, answer: Answer) -> Mapping[str, float | None]:
    """Return step (correct action, and target if the reference has one), its parts, grounding, memory and json."""
    action, target_ = rewards.action(sample, answer), rewards.target(sample, answer)
    return {
        "step": action if target_ is None else action * target_,
        "action": action,
        "target": target_,
        "target_fuzzy": rewards.target_fuzzy(sample, answer),
        "grounding": rewards.grounding(sample, answer),
        "in_box": rewards.in_box(sample, answer),
        "distance": rewards.distance(sample, answer),
        "iou": rewards.iou(sample, answer),
        "memory": rewards.memory(sample, answer),
        "json": rewards.json(sample, answer),
    }


def labels(sample: Sample, answer: Answer) -> tuple[str, str | None]:
    """Return the reference and the parsed action."""
    return sample.reference["action"], answer.values.get("action")


STEPS = Task(
    name="steps",
    columns=COLUMNS,
    required=frozenset({"task", "image", "question", "output|action"}),
    leaking=frozenset(name for field in HIDDEN for name in COLUMNS[field]),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=rewards.REWARDS,
    scores=scores,
    primary="step",
    labels=labels,
    baseline=baseline,
    baselines={"action": action_baseline, "target": target_baseline},
    also=("action", "target", "grounding", "memory"),
    settings=step_settings,
    link=link,
    notes=lambda sample: sample.fields["notes"],
    carried=CARRIED,
    grouped_by="the task",
)
