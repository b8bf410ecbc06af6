"""GUI steps in medical software: ordered rows, agent memory, and actions with coordinates."""

from toolkit.data.task import SettingsFromRows, Task
from toolkit.tasks.steps.agent_memory import EMPTY, AgentMemory, advance, replay
from toolkit.tasks.steps.episodes import AGENT_MEMORY, REFERENCE_FIELDS, link
from toolkit.tasks.steps.metrics import (
    RESULTS_BY,
    action_baseline,
    baseline,
    labels,
    scores,
    target_baseline,
)
from toolkit.tasks.steps.parse import parse
from toolkit.tasks.steps.prompt import instruction, question, target
from toolkit.tasks.steps.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.steps.schema import (
    COLUMNS,
    Steps,
    check_places,
    check_settings,
    dry_run_settings,
    read,
    step_settings,
)
from toolkit.tasks.steps.shapes import shapes
from toolkit.tasks.steps.synthetic import STEP_ROWS

__all__ = ["EMPTY", "STEPS", "AgentMemory", "advance", "replay"]

STEPS = Task(
    name="steps",
    description="the next step in medical imaging software, from screenshots",
    columns=COLUMNS,
    required=frozenset({"task", "image", "question", "output|action"}),
    leaking=frozenset(name for field in REFERENCE_FIELDS for name in COLUMNS[field]),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="step",
    labels=labels,
    baseline=baseline,
    baselines={"action": action_baseline, "target": target_baseline},
    also=("action", "target", "grounding", "memory"),
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    results_by=RESULTS_BY,
    settings_model=Steps,
    check=check_settings,
    settings=step_settings,
    from_rows=SettingsFromRows(check_places, lambda settings, values: settings, needed=False),
    synthetic=STEP_ROWS,
    dry_run=dry_run_settings,
    placeholders=lambda settings: {"task": "question", "action": settings.actions[0]},
    link=link,
    notes=lambda sample: sample.fields["notes"],
    agent_memory=AGENT_MEMORY,
    grouped_by="the task",
    needs_image=True,
    shapes=shapes,
)
