"""Conversations of several turns about images. SFT learns all assistant turns, evaluation generates the last one."""

from toolkit.data.task import Task
from toolkit.tasks.chat.metrics import baseline, labels, scores
from toolkit.tasks.chat.parse import parse
from toolkit.tasks.chat.prompt import instruction, question, target, turns
from toolkit.tasks.chat.rewards import ALL_OR_NOTHING, REWARD_WEIGHTS, REWARDS, WHY
from toolkit.tasks.chat.schema import COLUMNS, check_settings, read, read_settings
from toolkit.tasks.chat.synthetic import CHEST_CHAT

__all__ = ["CHAT"]

CHAT = Task(
    name="chat",
    description="conversations about medical images",
    columns=COLUMNS,
    required=frozenset({"messages"}),
    leaking=frozenset(COLUMNS["messages"]),
    read=read,
    instruction=instruction,
    question=question,
    target=target,
    parse=parse,
    rewards=REWARDS,
    reward_weights=REWARD_WEIGHTS,
    scores=scores,
    primary="token_f1",
    labels=labels,
    baseline=baseline,
    also=("exact_match",),
    why=WHY,
    all_or_nothing=ALL_OR_NOTHING,
    check=check_settings,
    settings=read_settings,
    synthetic=CHEST_CHAT,
    placeholders=lambda settings: {"answer": "unknown"},
    turns=turns,
)
